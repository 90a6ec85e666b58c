"""Training from shards: the losses of the same windows, resumed bitwise, with workers or without, in buckets and with
own samples; what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from runs import assert_same_run, beside, last_tensors, launch, train_until

from contrastive_i2v.cli.main import main
from contrastive_i2v.data import shards
from contrastive_i2v.data.examples import ExampleDataset
from contrastive_i2v.data.shard_order import Place
from contrastive_i2v.data.video import write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.training import batches
from contrastive_i2v.training.batches import build_loader
from contrastive_i2v.training.config import DataConfig, LossConfig, OwnSamplesConfig, TrainConfig
from contrastive_i2v.training.trainer import Trainer

OWN = OwnSamplesConfig(
    contrast_share=0.25, clips=4, refresh=3, steps=2, guidance_scale=1.0, image_guidance_scale=1.0, depth=1
)
BUCKETS = ((16, 24), (24, 16))


def encoded(config: TrainConfig, output: Path, *more: object) -> TrainConfig:
    """The run on shards of its clips, which `encode` wrote."""
    data = config.data
    options: dict[str, Any] = {
        "--model": config.model,
        "--data.path": data.path,
        "--data.resolution": data.resolution,
        "--data.frames.offset-std": data.frames.offset_std,
        "--data.frames.windows-per-clip": data.frames.windows_per_clip,
        "--data.frames.frame-rate": data.frames.frame_rate,
        "--seed": config.seed,
        "--output": output,
        "--workers": 0,
    }
    command = [part for pair in options.items() for part in pair] + list(more)
    assert main(["encode", *map(str, command)]) == 0
    return replace(config, data=replace(data, path=DataConfig.path, shards=str(output), streams=2))


@pytest.fixture
def sharded(train_config: TrainConfig, tmp_path: Path) -> TrainConfig:
    return encoded(train_config, tmp_path / "latents")


@pytest.fixture
def bucketed(train_config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """Shards of wide and of tall clips, two of each."""
    (tmp_path / "clips").mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(7):
        video = torch.randint(0, 256, (12, 3, 32, 48), generator=generator).to(torch.uint8)
        write_video(tmp_path / "clips" / f"{number}.mp4", video if number % 2 else video.mT, 5.0)
        (tmp_path / "clips" / f"{number}.txt").write_text("a ball")
    config = replace(train_config, data=replace(train_config.data, path=tmp_path / "clips", resolution=16))
    sizes = [side for size in BUCKETS for side in size]
    config = encoded(config, tmp_path / "latents", "--data.buckets", *sizes)
    config = replace(config, data=replace(config.data, buckets=BUCKETS))
    return replace(config, steps=6, batch_size=3, checkpoint_every=2, log_every=1)


def loaded(trainer: Trainer, config: TrainConfig, rank: int, ranks: int) -> list[Any]:
    accelerator: Any = SimpleNamespace(num_processes=ranks, process_index=rank, device=torch.device("cpu"))
    return list(build_loader(trainer.dataset, config, accelerator, step=0))


def test_batches_of_shards_in_buckets_are_the_same_for_any_number_of_processes(
    bucketed: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(bucketed)
    said = capsys.readouterr().out
    assert "bucket 16x24, 2 frames: 9 windows of 3 clips in 1 shards; 2 a batch" in said
    assert "bucket 24x16, 2 frames: 12 windows of 4 clips in 1 shards; 2 a batch" in said
    one = loaded(trainer, replace(bucketed, steps=40), 0, 1)
    shapes = [tuple(batch.raw.shape[-2:]) for batch in one]
    assert set(shapes) == {(8, 12), (12, 8)} and {len(batch.raw) for batch in one} == {2}
    assert shapes[::2] == shapes[1::2]  # as many in a row as there are streams
    assert shapes[:20] != shapes[20:]
    two = [loaded(trainer, replace(bucketed, steps=20), rank, 2) for rank in (0, 1)]
    for number, batch in enumerate(one):
        assert torch.equal(two[number % 2][number // 2].raw, batch.raw)
    seen = torch.cat([batch.raw.flatten(1) for batch in one])
    assert len(seen.unique(dim=0)) == 21  # all windows


def test_a_thousand_processes_read_shards_of_their_own_of_every_bucket() -> None:
    """2,000 workers, 4,000 and 8,000 shards of two buckets: an epoch has 250 and 500 turns of 2,000 batches."""
    held = [SimpleNamespace(examples=1000)] * 12_000
    buckets = {"a": list(range(4000)), "b": list(range(4000, 12_000))}
    dataset: Any = SimpleNamespace(manifest=SimpleNamespace(shards=held), buckets=lambda: buckets)
    data = DataConfig(shards="x", streams=2000)

    def taken(numbers: range) -> list[list[Place]]:
        return list(batches.shard_batches(dataset, [8, 8], numbers, data, seed=0))

    for worker in (0, 999, 1234):
        read = {place.shard for batch in taken(range(worker, worker + 2000 * 750, 2000)) for place in batch}
        assert len(read & set(buckets["a"])) == 2 and len(read & set(buckets["b"])) == 4
    kinds = [batch[0].shard < 4000 for batch in taken(range(2000 * 700, 2000 * 702))]
    assert len(set(kinds[:2000])) == len(set(kinds[2000:])) == 1
    assert taken(range(2000 * 700 + 7, 2000 * 750, 2000)) == taken(range(7, 2000 * 750, 2000))[700:]


@pytest.mark.processes
def test_buckets_of_shards_resume_bitwise_with_any_number_of_workers(
    bucketed: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(bucketed).run()
    stopped = beside(bucketed, "stopped")
    train_until(stopped, 5, monkeypatch)
    Trainer(replace(stopped, resume=True, workers=2)).run()
    assert_same_run(bucketed.output, stopped.output)
    launch(beside(bucketed, "two", loss=LossConfig(input_weight=0.1)), tmp_path / "run.yaml")  # candidates of one size


@pytest.mark.fault(
    "a shard that is trained on is damaged, cut off or deleted while the run is stopped",
    "it is named; deleted and encoded again it has the same bits, and so has the end of the resumed run",
)
@pytest.mark.parametrize("damage", ["byte", "cut", "deleted"])
def test_a_shard_that_is_damaged_while_a_run_is_stopped(
    damage: str, train_config: TrainConfig, sharded: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(sharded).run()
    stopped = beside(sharded, "stopped")
    train_until(stopped, 5, monkeypatch)
    (shard,) = Path(str(sharded.data.shards)).glob("*.tar")
    whole = shard.read_bytes()
    shard.write_bytes(
        {"byte": whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:], "cut": whole[:-700]}.get(damage, b"")
    )
    shard.unlink() if damage == "deleted" else None
    with pytest.raises(InputError, match=f"{shard.name}: (is damaged at|has .* bytes of|isn't there)") as raised:
        Trainer(replace(stopped, resume=True)).run()
    assert "\n" not in str(raised.value)
    shard.unlink(missing_ok=True)
    encoded(train_config, shard.parent)
    assert shard.read_bytes() == whole
    Trainer(replace(stopped, resume=True)).run()
    assert_same_run(sharded.output, stopped.output)


@pytest.mark.fault(
    "an object store that training reads from doesn't answer, and comes back",
    "the run waits, or ends in one line after half a minute; its end, or the resumed run's, has undisturbed bits",
)
@pytest.mark.parametrize("gone", [False, True])
def test_a_store_that_comes_back(gone: bool, sharded: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(sharded).run()
    store = fsspec.filesystem("memory")
    store.put(str(sharded.data.shards), f"/back-{gone}", recursive=True)
    remote = beside(sharded, "remote", data=replace(sharded.data, shards=f"memory://back-{gone}"))
    waits: list[float] = []
    monkeypatch.setattr(shards.time, "sleep", waits.append)
    opened, calls = MemoryFileSystem._open, []

    def sometimes(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) % 3 or (gone and len(calls) < 12):
            raise TimeoutError("no answer")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "_open", sometimes)
    if gone:
        with pytest.raises(InputError, match=r"can't be read after 6 tries \(no answer\)"):
            Trainer(remote)
        train_until(remote, 5, monkeypatch)
        calls.clear()  # away again
        with pytest.raises(InputError, match=r"can't be read after 6 tries \(no answer\)"):
            Trainer(replace(remote, resume=True))
        calls += [()] * 12
    Trainer(replace(remote, resume=gone)).run()
    assert len(waits) > 2
    assert_same_run(sharded.output, remote.output)


def test_rollouts_begin_in_shards(train_config: TrainConfig, sharded: TrainConfig, tmp_path: Path) -> None:
    """Depth 1 with any shards; deeper with those that hold what follows."""
    config = replace(sharded, own_samples=OWN, loss=LossConfig(own_weight=0.3))
    trainer = Trainer(config)
    trainer.run()
    assert trainer.own_samples is not None and trainer.own_samples.records is not None
    assert {"own_samples"} < last_tensors(config).keys()
    with pytest.raises(InputError, match="following: 0, asked for 2"):
        Trainer(beside(config, "deep", own_samples=replace(OWN, depth=3)))


def test_own_conditions_from_shards_resume_bitwise(
    train_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = replace(train_config.data.frames, offset_std=0.0)
    plain = replace(train_config, data=replace(train_config.data, frames=frames), log_every=1)
    config = encoded(plain, tmp_path / "deep", "--following", 2)
    own = replace(OWN, depth=3, condition_share=0.25, error_share=0.5)
    config = replace(config, own_samples=own, loss=LossConfig(own_weight=0.3))
    trainer = Trainer(config)
    trainer.run()
    bank = trainer.own_samples
    assert bank is not None and bank.records is not None
    cached = Trainer(beside(plain, "cached", own_samples=own, loss=config.loss)).dataset
    assert isinstance(cached, ExampleDataset)
    true = {
        tuple(tuple(cached.window(n, after).raw.flatten().tolist()) for after in range(3))
        for n, example in enumerate(cached.examples)
        if len(example.following) == 2
    }
    truth = bank.truth.raw.unflatten(0, (4, 3)).flatten(2)
    assert {tuple(map(tuple, rollout.tolist())) for rollout in truth} <= true
    stopped = beside(config, "stopped", checkpoint_every=1)
    train_until(stopped, config.steps - 1, monkeypatch)
    Trainer(replace(stopped, resume=True)).run()
    assert_same_run(config.output, stopped.output)


def test_it_trains_on_the_windows_of_the_folder(train_config: TrainConfig, sharded: TrainConfig) -> None:
    plain, other = Trainer(train_config).dataset, Trainer(beside(sharded, "sharded")).dataset
    assert isinstance(plain, ExampleDataset) and not isinstance(other, ExampleDataset)
    order = [(shard, n) for shard, one in enumerate(other.manifest.shards) for n in range(one.examples)]
    found = sorted(other[[Place(*place)]].raw[0].flatten().tolist() for place in order)
    assert found == sorted(plain[i].raw.flatten().tolist() for i in range(len(plain)))


@pytest.mark.processes
def test_it_resumes_bitwise_with_any_number_of_workers(sharded: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(sharded).run()
    stopped = beside(sharded, "stopped", checkpoint_every=1)
    train_until(stopped, sharded.steps - 1, monkeypatch)
    Trainer(replace(stopped, resume=True, workers=1)).run()
    assert_same_run(sharded.output, stopped.output)


def test_what_shards_do_not_hold_is_refused(sharded: TrainConfig) -> None:
    three: Any = SimpleNamespace(num_processes=3, process_index=0, is_main_process=False)
    data = replace(sharded.data, buckets=BUCKETS)
    with pytest.raises(InputError, match="data.streams=2 for 3 processes; with data.buckets"):
        batches.open_dataset(replace(sharded, data=data), Trainer(sharded).system, three)
    with pytest.raises(InputError, match="expected shards alone"):
        replace(sharded.data, keep=0.5)
    with pytest.raises(InputError, match="seed: 0, asked for 5"):
        Trainer(replace(sharded, seed=5))
