"""ConsistI2V and Emu Video in training: stages, what is trained, resuming, previews, contrasts, and refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from runs import Fp16Accelerator, assert_same_run, beside, last_tensors, train_until
from torch import Tensor
from video_models import consisti2v, emu_video, gradients, randn, told

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.video import write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.consisti2v import ConsistI2VConfig
from contrastive_i2v.models.emu_video import EmuVideoConfig
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import first_frames, rollout
from contrastive_i2v.training import trainer as trainer_module
from contrastive_i2v.training.batches import build_loader
from contrastive_i2v.training.config import (
    DataConfig,
    LossConfig,
    OptimizerConfig,
    OwnSamplesConfig,
    PreviewConfig,
    TrainConfig,
    ValidationConfig,
)
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.trainer import Trainer

CONSISTENT = ConsistI2VConfig(frames=4, max_stride=2, start_alpha=0.6)
FORCED = replace(CONSISTENT, frames=5, past_frames=2, frame_timesteps=True)
"""With a timestep a frame, and two given ones."""
STAGES = {
    "image": EmuVideoConfig(task="image"),
    "video": EmuVideoConfig(task="video", frames=4),
    "interpolation": EmuVideoConfig(task="interpolation", keyframes=2, gap=2),
}


@pytest.fixture(scope="module")
def shared(base_folder: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """ConsistI2V on the tiny random text-to-image model and 16x16 clips, strides of 1 and 2; one cache for all."""
    folder = tmp_path_factory.mktemp("video")
    frames = FramesConfig(frame_rate=8.0, max_offset=2, windows_per_clip=3)
    return TrainConfig(
        output=folder / "run",
        model=str(base_folder),
        system=CONSISTENT,
        steps=4,
        batch_size=4,
        ema_decay=0.9,
        log_every=1,
        checkpoint_every=2,
        conditioning_dropout=0.2,
        data=DataConfig(path=clips / "train", cache_dir=folder / "latents", resolution=16, frames=frames),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        preview=PreviewConfig(every=0),
    )


@pytest.fixture
def config(shared: TrainConfig, tmp_path: Path) -> TrainConfig:
    return replace(shared, output=tmp_path / "run")


def stage(config: TrainConfig, task: str, *, after: Path | str | None = None, **changes: Any) -> TrainConfig:
    """Emu Video's training of a task, from the model of a folder."""
    frames = FramesConfig(frame_rate=8.0, offset_std=0.0, windows_per_clip=3)
    data = replace(config.data, frames=frames)
    settings = {"system": STAGES[task], "model": str(after or config.model), "data": data}
    return beside(config, task, **{**settings, **changes})


@pytest.fixture(scope="module")
def trained(shared: TrainConfig) -> dict[str, Path]:
    """Models of Emu Video's first two stages, each from the one before, a step each; and of ConsistI2V."""
    image = Trainer(stage(shared, "image", steps=1)).run()
    video = Trainer(stage(shared, "video", after=image, steps=1)).run()
    return {"image": image, "video": video, "consisti2v": Trainer(replace(shared, steps=1)).run()}


@pytest.fixture
def staged(config: TrainConfig, trained: dict[str, Path]) -> dict[str, TrainConfig]:
    """Emu Video's three stages, each from the model of the one before."""
    return {
        "image": stage(config, "image"),
        "video": stage(config, "video", after=trained["image"]),
        "interpolation": stage(config, "interpolation", after=trained["video"]),
    }


def resumes(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trains, and again with a break in between; asserts the same bits, and returns the model."""
    folder = Trainer(config).run()
    broken = beside(config, f"{config.output.name}-broken")
    train_until(broken, 3, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)
    return folder


def test_consisti2v_trains_and_resumes_bitwise(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resumes(config, monkeypatch)
    system = load_system(folder, device="cpu")
    assert isinstance(system.config, ConsistI2VConfig)
    assert (system.window.length, system.config.max_stride, system.fps, system.size) == (4, 2, 8.0, (16, 16))
    trained, start = last_tensors(config)["network"], Trainer(beside(config, "fresh")).system.network.state_dict()
    still = [name for name, value in start.items() if torch.equal(value, trained[name])]
    assert all(name.endswith("rotary_emb.freqs") for name in still)  # everything else has moved
    assert set(last_tensors(config)["ema"]) == set(start)


def test_windows_of_several_lengths_train_and_resume_bitwise(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = config.output.parent / "clips"
    clips.mkdir()
    noise = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for number, frames in enumerate((12, 12, 4, 4)):
        write_video(clips / f"{number}.mp4", noise[:frames].roll(number, dims=0), 8.0)
        (clips / f"{number}.txt").write_text("a ball")
    data = replace(config.data, path=clips, lengths=(3, 6))
    config = replace(config, data=data, loss=LossConfig(), conditioning_dropout=0.0)
    resumes(config, monkeypatch)
    said = capsys.readouterr().out
    assert "bucket 16x16, 3 frames: " in said and "; 5 a batch" in said  # 4 windows of 4 frames are 16
    assert "bucket 16x16, 6 frames: 6 windows of 2 videos; 2 a batch" in said


def test_a_timestep_a_frame_trains_and_resumes_bitwise(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With own rollouts as conditions, their contrast, and captions."""
    own = OwnSamplesConfig(
        condition_share=0.25,
        contrast_share=0.25,
        depth=2,
        clips=2,
        refresh=2,
        steps=1,
        guidance_scale=1.0,
        image_guidance_scale=2.0,
        history_level=0.4,
    )
    frames = replace(config.data.frames, max_offset=1)
    loss = LossConfig(own_weight=0.3, text_weight=0.1)
    run = replace(config, system=FORCED, loss=loss, own_samples=own, data=replace(config.data, frames=frames))
    system = load_system(resumes(run, monkeypatch), device="cpu")
    assert system.frame_timesteps and system.window.given == (0, 1)
    for changes in ({"preview": PreviewConfig(history_level=0.2)}, {"own_samples": replace(own, history_level=0.2)}):
        with pytest.raises(InputError, match="history_level=0.2: consisti2v isn't told how noisy"):
            Trainer(beside(run, "refused", system=CONSISTENT, **changes))


@pytest.mark.parametrize("task", ["image", "video", "interpolation"])
def test_every_stage_of_emu_video_trains_and_resumes_bitwise(
    staged: dict[str, TrainConfig], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stage trains moves, and the rest keeps its bits, from the stage before to the model it writes."""
    config = staged[task]
    start = {
        name: value.clone() for name, value in Trainer(beside(config, "fresh")).system.network.state_dict().items()
    }
    folder = resumes(config, monkeypatch)
    moved = {name for name, value in last_tensors(config)["network"].items() if not torch.equal(value, start[name])}
    kinds = {".".join(name.split(".")[: 1 if name.startswith("unet") else 2]) for name in moved}
    expected = {
        "image": {"unet"},
        "video": {"temporal.layers", "temporal.conv_condition"},
        "interpolation": {"temporal.layers"},
    }
    assert kinds == expected[task]
    system = load_system(folder, device="cpu")
    assert isinstance(system.config, EmuVideoConfig) and system.config.task == task
    assert system.scheduler.config.prediction_type == "v_prediction" and system.scheduler.config.rescale_betas_zero_snr


@pytest.mark.parametrize("kind", ["consisti2v", "emu-video"])
def test_windows_from_own_last_frames_and_their_contrast(
    config: TrainConfig, staged: dict[str, TrainConfig], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two windows deep: the second is given the last frame of the first; its truth is the clip's next frames."""
    run = config if kind == "consisti2v" else staged["video"]
    own = OwnSamplesConfig(
        condition_share=0.25, contrast_share=0.25, error_share=0.5, depth=2, clips=3, refresh=2, steps=2
    )
    loss = LossConfig(target_weight=0.0, own_weight=0.3, dispersive_weight=0.5, flow_contrast_weight=0.05)
    run = replace(
        run, own_samples=own, loss=loss, data=replace(run.data, frames=replace(run.data.frames, max_offset=1))
    )
    resumes(run, monkeypatch)
    trainer = Trainer(beside(run, "fresh"))
    assert trainer.own_samples is not None
    trainer.own_samples.refresh(0)
    records, system = trainer.own_samples.records, trainer.system
    assert records is not None and records.numbers.tolist() == [0, 1] * 3
    for first in range(0, 6, 2):
        last = system.codec.denormalize(records.generated[first, -1])
        torch.testing.assert_close(records.given[first + 1, 0], last)
        before, after = (trainer.own_samples.truth.raw[row] for row in (first, first + 1))
        assert torch.equal(before[-1], after[0]) and not torch.equal(before[0], after[0])


@pytest.mark.parametrize("kind", ["consisti2v", "image", "video", "interpolation"])
def test_the_frames_of_a_window_are_aligned(
    config: TrainConfig, staged: dict[str, TrainConfig], kind: str, encoder: Path
) -> None:
    run = config if kind == "consisti2v" else staged[kind]
    loss = LossConfig(target_weight=0.0, dispersive_weight=0.5, alignment_weight=0.5, alignment_encoder=str(encoder))
    trainer = Trainer(replace(run, steps=1, loss=loss))
    trainer.run()
    row = read_log(run.output / "log.jsonl")[-1]
    assert -1 < row["alignment"] < 1
    assert row["loss"] == pytest.approx(row["mse"] + 0.5 * row["dispersive"] + 0.5 * row["alignment"], rel=1e-5)


def test_own_samples_between_keyframes_are_one_window_deep(
    staged: dict[str, TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnSamplesConfig(contrast_share=0.5, depth=1, clips=2, refresh=2, steps=1)
    run = replace(staged["interpolation"], loss=LossConfig(target_weight=0.0, own_weight=0.3), own_samples=own)
    resumes(run, monkeypatch)
    with pytest.raises(InputError, match="own_samples.depth=4.*emu-video don't follow each other; expected 1"):
        Trainer(beside(run, "deep", own_samples=replace(own, depth=4)))
    image = replace(staged["image"], own_samples=OwnSamplesConfig(error_share=0.5, depth=1))
    with pytest.raises(InputError, match="error_share: the model is given no frame"):
        Trainer(image)


@pytest.mark.parametrize("kind", ["consisti2v", "emu-video"])
def test_a_long_video_is_windows_that_share_a_frame(trained: dict[str, Path], kind: str) -> None:
    """S windows of T frames are S (T - 1) + 1; a shorter video is the beginning of a longer one."""
    system = load_system(trained["consisti2v" if kind == "consisti2v" else "video"], device="cpu")
    text = system.encode_text(["a red ball rolls", "make it snow"])
    first = randn(2, 4, 8, 8)
    options: dict[str, Any] = {
        "seeds": [3, 4],
        "sampler": Sampler(steps=2, guidance_scale=2.0, image_guidance_scale=1.5),
    }
    ends: list[tuple[int, int]] = []
    video = rollout(
        system, first, text, frames=3 * 3 + 1, callback=lambda last, new: ends.append((last, new.shape[1])), **options
    )
    assert video.shape == (2, 10, 4, 8, 8) and bool(video.isfinite().all())
    assert ends == [(3, 3), (6, 3), (9, 3)]
    assert torch.equal(rollout(system, first, text, frames=4, **options), video[:, :4])
    # the second window by hand: from the first one's last frame, the noise of its own place
    again = rollout(
        system, first[1:], {"prompt_embeds": text["prompt_embeds"][1:]}, frames=10, **options | {"seeds": [4]}
    )
    torch.testing.assert_close(again, video[1:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", ["consisti2v", "frame-timesteps", "image", "video", "interpolation"])
def test_previews(config: TrainConfig, staged: dict[str, TrainConfig], clips: Path, task: str) -> None:
    """A video, or for an image model a picture, every so many steps, what the log says, and the validation loss."""
    base = staged.get(task, config)
    if task == "frame-timesteps":
        base = replace(base, system=replace(base.system, frame_timesteps=True))
    data = replace(base.data, validation_path=clips / "test")
    preview = PreviewConfig(every=2, clips=2, frames=6, steps=1)
    validation = ValidationConfig(every=2)
    run = beside(base, f"{task}-previews", data=data, preview=preview, validation=validation, steps=2)
    Trainer(run).run()
    assert any(0 < row.get("validation/mse", 0) < 10 for row in read_log(run.output / "log.jsonl"))
    (file,) = (run.output / "previews").iterdir()
    assert file.name == f"step-00000002.{'png' if task == 'image' else 'mp4'}"
    figures = {name for row in read_log(run.output / "log.jsonl") for name in row if name.startswith("preview/")}
    assert figures == (set() if task == "image" else {"preview/motion_ratio", "preview/last_frame_mse"})


@pytest.mark.slow
def test_the_packaged_model_becomes_each_video_model(config: TrainConfig, tmp_path: Path) -> None:
    """Its InstructPix2Pix UNet loses its image channels; two steps each; text becomes an image and a video."""
    small = {"model": "tiny", "steps": 2, "batch_size": 2, "ema_decay": 0.0}
    folder = Trainer(beside(config, "consisti2v", **small)).run()
    system = load_system(folder, device="cpu")
    one = Sampler(steps=1, guidance_scale=1.0, image_guidance_scale=1.0)
    text = system.encode_text(["a red ball rolls to the left"])
    assert rollout(system, randn(1, 4, 4, 4), text, frames=7, seeds=[0], sampler=one).isfinite().all()
    image = Trainer(stage(config, "image", **small)).run()
    video = Trainer(stage(config, "video", **{**small, "model": str(image)})).run()
    system = load_system(video, device="cpu")
    first = first_frames(system, text, size=(16, 16), seeds=[0], sampler=one)
    assert rollout(system, first, text, frames=7, seeds=[0], sampler=one).shape == (1, 7, 4, 4, 4)


@pytest.mark.parametrize("rows", ["frame", "clip"])
@pytest.mark.parametrize("kind", ["consisti2v", "emu-video", "a timestep a frame"])
def test_contrasts_are_between_clips(
    config: TrainConfig, staged: dict[str, TrainConfig], kind: str, rows: Literal["frame", "clip"]
) -> None:
    """A row a generated frame or a clip, its group its video; the loss of one prediction in float64, by loops."""
    base = staged["video"] if kind == "emu-video" else config
    run = beside(base, "contrast", loss=LossConfig(rows=rows, temperature=0.3, input_weight=0.1), batch_size=4)
    if kind == "a timestep a frame":
        run = replace(run, system=FORCED)
        if rows == "clip":
            with pytest.raises(InputError, match=r"loss.rows=clip: .*system.frame_timesteps; expected frame"):
                Trainer(run)
            return
    trainer = Trainer(run)
    batch = next(iter(build_loader(trainer.dataset, run, trainer.accelerator, step=0)))
    inputs = trainer._inputs(batch, 0)
    count = 4 if kind == "emu-video" else 3  # ConsistI2V's given frame is no row, Emu Video makes it anew
    assert inputs.clean_latents.shape == (4, count, 4, 8, 8)
    prediction = randn(4, count, 4, 8, 8, seed=7)
    value, figures = trainer._loss(prediction, inputs)
    every = [(clip, frame) for clip in range(4) for frame in range(count)]
    places: list[Any] = every if rows == "frame" else [(clip, slice(None)) for clip in range(4)]
    expected = loss_by_hand(trainer, prediction, inputs, places, 0.3)
    assert float(figures["mse"]) == pytest.approx(expected["mse"], rel=1e-5)
    for bank in ("target", "input"):
        assert float(figures[f"contrastive/{bank}"]) == pytest.approx(expected[bank], rel=1e-4, abs=1e-6)
    total = expected["mse"] + 0.2 * expected["target"] + 0.1 * expected["input"]
    assert float(value) == pytest.approx(total, rel=1e-5)


def loss_by_hand(
    trainer: Trainer, prediction: Tensor, inputs: Any, places: list[Any], temperature: float
) -> dict[str, float]:
    """Mean over rows of abar CE(cosines / temperature), other rows of the own video left out; and the MSE."""
    abar, v = trainer.loss.schedule.alphas_cumprod, trainer.loss.schedule.prediction_type == "v_prediction"
    assert abar is not None
    queries, targets, sources, clips, errors = [], [], [], [], []
    for clip, frame in places:
        at = inputs.timesteps[clip]
        a = float(abar[at if at.ndim == 0 else at[frame]])
        x, f, z, e = (
            t[clip, frame].double() for t in (inputs.noisy_latents, prediction, inputs.clean_latents, inputs.noise)
        )
        source = inputs.source_latents[clip].double().expand_as(z)
        queries.append(math.sqrt(a) * x - math.sqrt(1 - a) * f if v else (x - math.sqrt(1 - a) * f) / math.sqrt(a))
        errors.append(float((f - (math.sqrt(a) * e - math.sqrt(1 - a) * z if v else e)).square().mean()))
        targets.append(z)
        sources.append(source)
        clips.append((clip, a))
    found = {"mse": sum(errors) / len(errors)}
    for name, bank in (("target", targets), ("input", sources)):
        total = 0.0
        for i, (clip, a) in enumerate(clips):
            if name == "input" and not bool(inputs.has_condition[clip]):
                continue
            group = inputs.groups[clip]
            logits = {
                j: float((queries[i] * row).sum() / queries[i].norm() / row.norm()) / temperature
                for j, row in enumerate(bank)
                if j == i or inputs.groups[clips[j][0]] != group
            }
            total += a * (math.log(sum(map(math.exp, logits.values()))) - logits[i])
        found[name] = total / len(clips)
    return found


@pytest.fixture
def another_precision() -> Iterator[None]:
    """accelerate keeps a process's first precision."""
    _forget_precision()
    yield
    _forget_precision()


def _forget_precision() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.slow
@pytest.mark.usefixtures("another_precision")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["consisti2v", "emu-video"])
def test_training_in_half_precision_stays_finite(
    config: TrainConfig,
    staged: dict[str, TrainConfig],
    kind: str,
    precision: Literal["bf16", "fp16"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """200 steps in autocast; none is skipped, but in fp16 those until the loss's scale has come down."""
    monkeypatch.setattr(trainer_module, "Accelerator", Fp16Accelerator)
    base = config if kind == "consisti2v" else staged["video"]
    run = beside(base, precision, mixed_precision=precision, batch_size=2, steps=200, log_every=50)
    Trainer(run).run()
    rows = read_log(run.output / "log.jsonl")
    assert rows[0]["nonfinite_steps"] == rows[-1]["nonfinite_steps"] <= (0 if precision == "bf16" else 20)
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert all(bool(value.isfinite().all()) for value in last_tensors(run)["network"].values())


@pytest.mark.parametrize("kind", ["consisti2v", "emu-video"])
def test_float16_has_finite_predictions_and_gradients(base_folder: Path, kind: str) -> None:
    """Weights and all in float16, forward and backward, near the float32 ones."""
    system = (consisti2v if kind == "consisti2v" else emu_video)(base_folder, stirred=True)
    count = len(system.window.generated)
    inputs, condition = (randn(2, count, 4, 8, 8), torch.tensor([10, 900])), told(system, 2)
    expected = system.network(*inputs, **condition)
    system.to(dtype=torch.float16)
    actual = system.network(*inputs, **condition)
    assert actual.dtype == torch.float16
    torch.testing.assert_close(actual.float(), expected, rtol=0.05, atol=0.05)
    found = gradients(system)
    assert found and all(bool(value.isfinite().all()) for value in found.values())


def test_runs_that_cannot_be_are_refused(config: TrainConfig) -> None:
    """Clips shorter than a window, strides beyond the model's, and models that a task can't start from."""

    def refused(run: TrainConfig, says: str) -> None:
        with pytest.raises(InputError, match=says) as error:
            Trainer(run)
        assert "\n" not in str(error.value)

    long = replace(config, system=replace(CONSISTENT, frames=10))
    refused(long, "none of the 6 clips can be used: .*too short: 1.00 s hold fewer than 10 frames at 8 a second")
    far = replace(config.data, frames=replace(config.data.frames, max_offset=None, offset_std=20.0))
    refused(beside(config, "far", data=far, system=replace(CONSISTENT, frames=2)), r"is a stride of .*max.offset")
    epsilon = beside(config, "epsilon", system=STAGES["video"])
    refused(epsilon, r"predicts epsilon.*\(zero_terminal_snr\); expected v prediction")
    refused(beside(config, "between", system=STAGES["interpolation"]), "is no video model; interpolation starts from")
