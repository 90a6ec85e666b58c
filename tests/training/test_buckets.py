"""Batches of several sizes: their order, their rows, and a training on them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_run, beside, launch, train_until

from contrastive_i2v.data.video import write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.training.batches import batch_indices, build_loader
from contrastive_i2v.training.config import (
    DataConfig,
    LossConfig,
    OwnSamplesConfig,
    TrainConfig,
    load_config,
    save_config,
)
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.trainer import Trainer

BUCKETS = [range(40), range(40, 52), range(52, 53)]
ROWS = [4, 2, 2]


def bucket_of(batch: list[int]) -> int:
    found = {next(n for n, bucket in enumerate(BUCKETS) if row in bucket) for row in batch}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_example_comes_as_often_and_each_micro_batch_is_of_one_bucket(processes: int) -> None:
    epochs = 12  # after which every bucket has had whole micro-batches alone
    count = sum(epochs * len(bucket) // (rows * processes) for bucket, rows in zip(BUCKETS, ROWS, strict=True))
    batches = list(batch_indices(BUCKETS, ROWS, range(count * processes), seed=1, processes=processes))
    kinds = [bucket_of(batch) for batch in batches]
    steps = [kinds[start : start + processes] for start in range(0, len(kinds), processes)]
    assert all(len(set(step)) == 1 for step in steps)
    assert [len(batch) for batch in batches] == [ROWS[kind] for kind in kinds]
    assert set(Counter(row for batch in batches for row in batch).values()) == {epochs}
    assert kinds != sorted(kinds) and kinds[: len(kinds) // 2] != kinds[len(kinds) // 2 :]  # shuffled, and anew
    for rank in range(processes):  # from anywhere, by any process
        mine = batch_indices(BUCKETS, ROWS, range(9 * processes + rank, 90, processes), seed=1, processes=processes)
        assert list(mine) == batches[9 * processes + rank : 90 : processes]


@pytest.fixture
def config(train_config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """Wide and tall clips, in a bucket of either kind."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    noise = torch.randint(0, 256, (12, 3, 32, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for number in range(4):
        video = noise.roll(number, dims=0)
        write_video(folder / f"{number}.mp4", video if number < 3 else video.mT, 5.0)
        (folder / f"{number}.txt").write_text("a ball")
    data = replace(train_config.data, path=folder, resolution=16, buckets=((16, 24), (24, 16), (8, 8)))
    return replace(train_config, data=data, steps=4, batch_size=3, checkpoint_every=2, log_every=1)


def test_a_run_of_several_sizes_resumes_bitwise(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(config)
    said = capsys.readouterr().out
    assert "bucket 16x24, 2 frames: 9 windows of 3 videos; 2 a batch" in said
    assert "bucket 24x16, 2 frames: 3 windows of 1 videos, so no negatives; 2 a batch" in said and "8x8" not in said
    shapes = [tuple(batch.raw.shape) for batch in build_loader(trainer.dataset, config, trainer.accelerator, step=0)]
    assert {shape[-2:] for shape in shapes} == {(8, 12), (12, 8)} and {shape[0] for shape in shapes} == {2}
    trainer.run()
    trainer.lock.close() if trainer.lock else None
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in read_log(config.output / "log.jsonl"))
    again = beside(config, "again")
    train_until(again, 3, monkeypatch)
    Trainer(replace(again, resume=True)).run()
    assert_same_run(config.output, again.output)


@pytest.mark.processes
def test_two_processes_gather_candidates_of_one_size(config: TrainConfig, tmp_path: Path) -> None:
    launch(replace(config, loss=LossConfig(input_weight=0.1)), tmp_path / "run.yaml")
    assert len(read_log(config.output / "log.jsonl")) == config.steps


def test_the_config_keeps_its_buckets(config: TrainConfig, tmp_path: Path) -> None:
    save_config(config, tmp_path / "config.yaml")
    assert load_config(TrainConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({"max_aspect_ratio": 0.5}, {}, "max_aspect_ratio: expected a number >= 1, got 0.5"),
        ({"max_aspect_ratio": 2.0, "buckets": ((8, 8),)}, {}, "expected one of them"),
        ({"max_aspect_ratio": 2.0}, {"loss": LossConfig(memory_bank=99)}, "loss.memory_bank: holds latents of one"),
        ({"max_aspect_ratio": 2.0}, {"loss": LossConfig(text_weight=0.1)}, "loss.text_weight: holds latents of one"),
        ({"lengths": (8, 8)}, {}, "lengths: expected numbers >= 1, none twice, got 8 8"),
        (
            {"lengths": (8,)},
            {"loss": LossConfig(alignment_weight=0.5, alignment_encoder="x")},
            "loss.alignment_weight: takes windows of one length",
        ),
        ({"buckets": ((8, 8),)}, {"own_samples": OwnSamplesConfig(error_share=0.5)}, "own_samples: holds latents"),
    ],
)
def test_what_needs_one_size_is_refused(data: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(data=DataConfig(**data), **options)


def test_a_size_that_the_model_cannot_take_is_refused(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="data.buckets: got 16x25 .* multiples of"):
        Trainer(replace(config, data=replace(config.data, buckets=((16, 24), (16, 25)))))
    with pytest.raises(InputError, match="data.lengths: the windows of instruct-pix2pix have 2 frames"):
        Trainer(replace(config, data=replace(config.data, lengths=(2, 4))))


def test_rows_of_one_video_leave_the_noise_loss_alone(config: TrainConfig) -> None:
    loss = LossConfig(input_weight=0.3, flow_contrast_weight=0.1, dispersive_weight=0.5)
    trainer = Trainer(replace(config, loss=loss))
    lone = next(iter(build_loader(trainer.dataset, trainer.config, trainer.accelerator, step=0)))
    inputs = trainer._inputs(lone._replace(group=torch.zeros_like(lone.group)), 0)
    prediction, _ = trainer._predict(inputs)
    total, values = trainer._loss(prediction, inputs)
    assert float(total) == float(values["mse"]) > 0
    total.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in trainer.system.network.parameters())
