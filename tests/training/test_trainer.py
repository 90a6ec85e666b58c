"""The training loop: exact resume, skipped steps, what it writes, and clear refusals."""

from __future__ import annotations

import io
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_run, beside, last_step, train_until
from safetensors.torch import load_file

from contrastive_i2v.data.examples import SKIPPED
from contrastive_i2v.data.sources import read
from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import DivergedError, InputError, Interrupted
from contrastive_i2v.models import load_system
from contrastive_i2v.training.batches import build_loader
from contrastive_i2v.training.checkpoint import list_checkpoints, load_checkpoint
from contrastive_i2v.training.config import LossConfig, PreviewConfig, TrainConfig, load_config, save_config
from contrastive_i2v.training.inputs import loss_rows
from contrastive_i2v.training.logs import RunLog, read_log
from contrastive_i2v.training.trainer import Trainer, build_loss


def test_a_run_repeats_itself_and_resumes_bitwise(train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(train_config, gradient_accumulation=2)
    Trainer(config).run()
    again = replace(config, output=config.output.with_name("again"))
    Trainer(again).run()
    assert_same_run(config.output, again.output)

    broken = replace(config, output=config.output.with_name("broken"))
    train_until(broken, 3, monkeypatch)  # one step past a checkpoint
    train_until(replace(broken, resume=True), 6, monkeypatch)  # right at one
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)

    other = replace(config, output=config.output.with_name("other"), seed=1)
    Trainer(other).run()
    with pytest.raises(AssertionError):
        assert_same_run(config.output, other.output)


def test_a_run_with_a_memory_bank_resumes_bitwise(train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(train_config, steps=5, loss=LossConfig(input_weight=0.1, memory_bank=10))
    Trainer(config).run()
    broken = replace(config, output=config.output.with_name("broken"))
    train_until(broken, 3, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)
    saved = load_checkpoint(list_checkpoints(config.output / "checkpoints")[-1])[0]["memory_bank"]
    assert saved.keys() == {f"{b}.{n}" for b in ("input", "target") for n in ("queue", "queue_groups", "_extra_state")}

    without = replace(config, output=config.output.with_name("without"), loss=LossConfig(input_weight=0.1))
    Trainer(without).run()
    losses = [read_log(run.output / "log.jsonl")[-1]["contrastive/target"] for run in (config, without)]
    assert losses[0] > losses[1]  # more negatives


@pytest.mark.processes
@pytest.mark.fault("`kill -9` at random moments of a training", "resumed, it ends with the bits of an undisturbed run")
def test_a_run_killed_at_random_moments_resumes_bitwise(train_config: TrainConfig) -> None:
    config = replace(train_config, steps=40, checkpoint_every=3)
    Trainer(config).run()
    killed = replace(config, output=config.output.with_name("killed"), resume=True)
    path = killed.output / "start.yaml"
    save_config(killed, path)
    save_config(killed, killed.output / "config.yaml")  # so that the first start may say --resume too
    code = f"from contrastive_i2v.cli.main import main; main(['train', '--config', {str(path)!r}])"
    rng = random.Random(time.time_ns())
    for kill in (1, 2, 3):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        before = len(list_checkpoints(killed.output / "checkpoints")) and last_step(killed)
        deadline = time.monotonic() + 120
        while last_step(killed) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"kill {kill} came after the end"
    assert 0 < last_step(killed) < config.steps
    Trainer(killed).run()
    assert_same_run(config.output, killed.output)


def test_a_balanced_run_resumes_bitwise_and_logs_its_weight(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(train_config, steps=4, log_every=1, loss=LossConfig(balance=0.5), gradient_accumulation=2)
    Trainer(config).run()
    broken = beside(config, "broken")
    train_until(broken, 3, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)
    weights = [[row["balance/weight"] for row in read_log(run.output / "log.jsonl")] for run in (config, broken)]
    assert weights[0] == weights[1] and len(set(weights[0])) == 4 and min(weights[0]) > 0
    saved = load_checkpoint(list_checkpoints(config.output / "checkpoints")[-1])[0]
    assert saved["balance"]["averages"].min() > 0


def test_ctrl_c_saves_the_step_under_way(train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.state.step == 2 and not self.config.resume:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    config = replace(train_config, steps=4, checkpoint_every=100)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        Trainer(config).run()
    assert signal.getsignal(signal.SIGTERM) is before
    assert last_step(config) == 3
    Trainer(replace(config, resume=True)).run()
    whole = replace(config, output=config.output.with_name("whole"), resume=True)
    save_config(whole, whole.output / "config.yaml")
    Trainer(whole).run()
    assert_same_run(whole.output, config.output)


def test_training_moves_the_unet_alone_and_writes_a_model_that_opens(train_config: TrainConfig) -> None:
    before = load_system(train_config.model)
    folder = Trainer(train_config).run()
    after = load_system(folder)
    assert after.fingerprint == before.fingerprint
    assert not torch.equal(after.unet.conv_in.weight, before.unet.conv_in.weight)
    shadow = load_file(list_checkpoints(train_config.output / "checkpoints")[-1] / "ema.safetensors")
    saved = dict(after.network.named_parameters())
    assert shadow.keys() == saved.keys()
    assert all(torch.equal(shadow[name], value) for name, value in saved.items())  # the moving average is saved


def test_the_log_holds_every_figure_that_the_guide_names(train_config: TrainConfig) -> None:
    config = replace(train_config, loss=LossConfig(target_weight=0.2, input_weight=0.1), steps=4)
    Trainer(config).run()
    rows = read_log(config.output / "log.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert {
            "loss", "mse", "contrastive/target", "contrastive/input", "retrieval/target", "grad_norm",
            "learning_rate", "samples_per_second", "nonfinite_steps",
        } <= row.keys()  # fmt: skip
        assert row["loss"] == pytest.approx(
            row["mse"] + 0.2 * row["contrastive/target"] + 0.1 * row["contrastive/input"]
        )
    assert list((config.output / "tensorboard").iterdir())
    assert load_config(TrainConfig, config.output / "config.yaml") == config


def test_the_baseline_has_no_contrastive_term(train_config: TrainConfig) -> None:
    config = replace(train_config, loss=LossConfig(target_weight=0.0), steps=2)
    Trainer(config).run()
    row = read_log(config.output / "log.jsonl")[-1]
    assert row["loss"] == row["mse"] and not any(name.startswith("contrastive") for name in row)


def test_previews_show_held_out_clips(train_config: TrainConfig, clips: Path) -> None:
    from contrastive_i2v.data.video import probe

    data = replace(train_config.data, validation_path=clips / "test")
    preview = PreviewConfig(every=2, clips=2, frames=3, steps=2)
    Trainer(replace(train_config, data=data, preview=preview, steps=2)).run()
    shown = probe(train_config.output / "previews" / "step-00000002.mp4")
    assert (shown.frames, shown.height, shown.width) == (3, 2 * 2 * 16, 2 * 2 * 16)  # truth above, two clips, doubled
    assert read_log(train_config.output / "log.jsonl")[-1]["preview/motion_ratio"] > 0


def test_every_step_is_in_training_mode(train_config: TrainConfig) -> None:
    trainer = Trainer(train_config)
    batch = next(iter(build_loader(trainer.dataset, train_config, trainer.accelerator, step=0)))
    for _ in range(2):
        trainer.system.network.eval()  # as previews leave it
        trainer._train_step([batch])
        assert all(module.training for module in trainer.system.network.modules())


@pytest.mark.fault(
    "a dataset's tar is cut off",
    "what comes before the cut is trained on, the rest named; a resumed run ends with the bits of an undisturbed one",
)
def test_a_tar_that_is_cut_off_is_trained_on_as_far_as_it_goes(
    train_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "00000.tar"
    with tarfile.open(path, "w") as tar:
        for number, clip in enumerate(read(train_config.data.path).clips):
            for suffix, content in ((".mp4", clip.path.read_bytes()), (".txt", clip.caption.encode())):
                header = tarfile.TarInfo(f"{number:09d}{suffix}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    with tarfile.open(path) as tar:
        member = tar.getmembers()[-2]  # the last video
    path.write_bytes(path.read_bytes()[: member.offset_data + member.size // 2])
    config = replace(train_config, data=replace(train_config.data, path=tmp_path / "set"))
    Trainer(config).run()
    assert path.name in (config.output / "skipped.csv").read_text()
    broken = beside(config, "broken")
    train_until(broken, 5, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)


def poison(monkeypatch: pytest.MonkeyPatch, steps: Callable[[int], bool]) -> None:
    """Make the loss of some steps NaN."""
    original = Trainer._loss

    def loss(self: Trainer, prediction: torch.Tensor, inputs: Any) -> Any:
        value, metrics = original(self, prediction, inputs)
        return (value * float("nan") if steps(self.state.step) else value), metrics

    monkeypatch.setattr(Trainer, "_loss", loss)


@pytest.mark.fault("a gradient is NaN", "the step is skipped and counted; the weights stay finite")
def test_a_nonfinite_gradient_skips_the_step_and_is_counted(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda step: step in (2, 5))
    trainer = Trainer(train_config)
    folder = trainer.run()
    assert read_log(train_config.output / "log.jsonl")[-1]["nonfinite_steps"] == 2
    assert all(torch.isfinite(p).all() for p in load_system(folder).unet.parameters())


@pytest.mark.fault(
    "every gradient is NaN", "the run stops with a status of its own and says what to try; its checkpoint is finite"
)
def test_too_many_nonfinite_gradients_stop_the_run_with_advice(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda step: step >= 3)
    assert not issubclass(DivergedError, InputError)  # whoever catches bad input doesn't catch this
    with pytest.raises(DivergedError, match="3 steps in a row.*learning-rate"):
        Trainer(replace(train_config, max_nonfinite_steps=3)).run()
    saved = load_checkpoint(list_checkpoints(train_config.output / "checkpoints")[0])[0]
    assert all(torch.isfinite(p).all() for p in saved["network"].values())


def test_bad_starts_are_refused_and_nothing_is_lost(train_config: TrainConfig, clips: Path, tmp_path: Path) -> None:
    def refuse(message: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=message):
            Trainer(replace(train_config, **changes))

    data = train_config.data
    refuse("nowhere", data=replace(data, path=tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    refuse("empty", data=replace(data, path=tmp_path / "empty"))
    refuse("resolution: got 15x15 pixels", data=replace(data, resolution=15))
    refuse("memory_bank=3; expected 0, or at least the 4 rows", loss=LossConfig(memory_bank=3))
    refuse("holds no run to resume", resume=True)
    Trainer(replace(train_config, steps=2)).run()
    kept = sorted(train_config.output.rglob("*"))
    refuse("add --resume", steps=2)
    refuse("another config.*batch_size: 4 -> 2", steps=2, batch_size=2, resume=True)
    assert sorted(train_config.output.rglob("*")) == kept


def test_epsilon_with_zero_terminal_snr_is_refused() -> None:
    config: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    config["rescale_betas_zero_snr"] = True
    with pytest.raises(InputError, match="v_prediction"):
        NoiseSchedule.from_config(config | {"prediction_type": "epsilon"})
    schedule = NoiseSchedule.from_config(config | {"prediction_type": "v_prediction"})
    assert build_loss(schedule, LossConfig()).banks == {"target": 0.2}


@pytest.mark.fault("the last line of a log is cut off by a kill", "a resumed run leaves it out")
def test_a_cut_last_line_and_later_rows_leave_the_log_on_resume(tmp_path: Path) -> None:
    log = RunLog(tmp_path, from_step=0)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step)})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    RunLog(tmp_path, from_step=2).write(3, {"loss": 30.0})
    assert [row["loss"] for row in read_log(tmp_path / "log.jsonl")] == [1.0, 2.0, 30.0]


def test_a_step_contrasts_with_the_batch_s_targets(train_config: TrainConfig) -> None:
    loss = LossConfig(gate="none", false_negatives=False)
    trainer = Trainer(replace(train_config, condition_noise=0.5, loss=loss))
    loader = build_loader(trainer.dataset, trainer.config, trainer.accelerator, step=0)
    inputs = trainer._inputs(next(iter(loader)), 0)
    prediction = torch.randn(inputs.noise.shape, generator=torch.Generator().manual_seed(0))
    _, values = trainer._loss(prediction, inputs)

    abar = trainer.loss.schedule.alphas_cumprod[inputs.timesteps][:, None, None, None, None]
    x0 = (inputs.noisy_latents - (1 - abar).sqrt() * prediction) / abar.sqrt()  # the random model predicts noise
    assert torch.equal(loss_rows(inputs, "frame").banks["input"], inputs.source_latents)
    found, shown = (latents.double().flatten(1) for latents in (x0, inputs.clean_latents))
    logits = torch.nn.functional.cosine_similarity(found[:, None], shown[None], dim=2) / 0.07
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)))
    assert trainer.system.scheduler.config.prediction_type == "epsilon"
    assert values["contrastive/target"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.fault(
    "a second run starts in the same output folder",
    "it is refused with the other's process and start; the lock goes with the process",
)
def test_two_processes_do_not_train_into_one_folder(train_config: TrainConfig, tmp_path: Path) -> None:
    """The kernel lets go of the lock when the process dies, however it dies."""
    save_config(train_config, tmp_path / "run.yaml")
    code = (
        "import sys, time; from pathlib import Path; from contrastive_i2v.files import lock_folder\n"
        f"lock = lock_folder(Path({str(train_config.output)!r})); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        before = sorted(train_config.output.rglob("*"))
        with pytest.raises(InputError, match=rf"run: is in use by process {other.pid} since 20.*another --output"):
            Trainer(train_config)
        assert sorted(train_config.output.rglob("*")) == before
    finally:
        other.kill()
        other.wait()
    first = Trainer(train_config)
    Trainer(train_config)  # this process's own, say after an error in a notebook
    assert first.lock is not None and not first.lock.closed


@pytest.mark.fault("SIGINT, SIGTERM or SIGHUP while training", "a checkpoint of the step under way, then the end")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_stops(train_config: TrainConfig, name: str) -> None:
    trainer = Trainer(replace(train_config, checkpoint_every=100))
    step = trainer._train_step

    def signalled(batches: Any) -> Any:
        if trainer.state.step == 2:
            signal.raise_signal(getattr(signal, name))
        return step(batches)

    trainer._train_step = signalled  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as interrupted:
        trainer.run()
    assert interrupted.value.number == getattr(signal, name)
    assert [one.name for one in list_checkpoints(train_config.output / "checkpoints")] == ["step-00000003"]


@pytest.mark.fault("a validation clip is corrupt", "it is named and left out of the previews")
def test_a_validation_clip_that_cannot_be_read_is_left_out_of_the_previews(
    train_config: TrainConfig, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(clips / "test", tmp_path / "held-out"))
    broken = sorted(folder.glob("*.mp4"))[0]
    broken.write_bytes(b"no video" * 50)
    data = replace(train_config.data, validation_path=folder)
    config = replace(train_config, data=data, preview=PreviewConfig(every=2, clips=2, frames=3))
    trainer = Trainer(config)
    assert trainer.preview is not None and len(trainer.preview.captions) == 1
    assert f"left out of the previews: {broken}" in capsys.readouterr().out
    for other in folder.glob("*.mp4"):
        other.write_bytes(b"no video" * 50)
    with pytest.raises(InputError, match="held-out: none of the clips for previews can be read"):
        Trainer(config)


@pytest.mark.fault(
    "the last checkpoint is damaged, and the run resumed",
    "the run goes on from the one before and ends with the bits of an undisturbed one",
)
@pytest.mark.parametrize("file", ["network.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_with_the_same_bits(
    train_config: TrainConfig, file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = beside(train_config, "whole"), beside(train_config, "broken")
    Trainer(whole).run()
    train_until(broken, 5, monkeypatch)  # checkpoints of steps 2 and 4
    path = list_checkpoints(broken.output / "checkpoints")[-1] / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    Trainer(replace(broken, resume=True)).run()
    assert "step-00000004: damaged checkpoint" in capsys.readouterr().out
    assert_same_run(whole.output, broken.output)


@pytest.mark.fault(
    "training clips can't be read, some or all",
    "`skipped.csv` in the run's folder names each with the reason; without any left, one line",
)
@pytest.mark.parametrize("count", [1, 6])
def test_every_clip_that_is_left_out_is_named_in_the_run_s_folder(
    train_config: TrainConfig, clips: Path, tmp_path: Path, count: int
) -> None:
    folder = Path(shutil.copytree(clips / "train", tmp_path / "clips"))
    (folder / "uncaptioned.mp4").write_bytes(b"no video")
    videos = sorted(folder.glob("0*.mp4"))
    for broken in videos[:count]:
        broken.write_bytes(b"no video" * 50)
    config, file = replace(train_config, data=replace(train_config.data, path=folder)), train_config.output / SKIPPED
    if count == len(videos):
        with pytest.raises(InputError, match=f"none of the 6 clips can be used: .*all of them are in {file}"):
            Trainer(config)
    else:
        Trainer(config)
    lines = file.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "path",
        str(folder / "uncaptioned.mp4"),
        *map(str, videos[:count]),
    ]
    assert [path.name for path in tmp_path.rglob(SKIPPED)] == [SKIPPED]  # and nowhere else


def test_a_folder_of_the_user_s_among_the_checkpoints_stays(train_config: TrainConfig) -> None:
    mine = train_config.output / "checkpoints" / "step-by-step"
    mine.mkdir(parents=True)
    Trainer(replace(train_config, keep_checkpoints=1)).run()
    assert mine.is_dir() and last_step(train_config) == train_config.steps
