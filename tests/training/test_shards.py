"""Training from shards: the losses of the same windows, resumed bitwise, with workers or without; what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import assert_same_run, beside, train_until

from contrastive_i2v.cli.main import main
from contrastive_i2v.data.examples import ExampleDataset
from contrastive_i2v.data.shard_order import Place
from contrastive_i2v.errors import InputError
from contrastive_i2v.training.config import DataConfig, OwnSamplesConfig, TrainConfig
from contrastive_i2v.training.trainer import Trainer


@pytest.fixture
def sharded(train_config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """The run on shards of its clips, which `encode` wrote."""
    data = train_config.data
    options: dict[str, Any] = {
        "--model": train_config.model,
        "--data.path": data.path,
        "--data.resolution": data.resolution,
        "--data.frames.offset-std": data.frames.offset_std,
        "--data.frames.windows-per-clip": data.frames.windows_per_clip,
        "--data.frames.frame-rate": data.frames.frame_rate,
        "--seed": train_config.seed,
        "--output": tmp_path / "latents",
        "--workers": 0,
    }
    assert main(["encode", *(str(part) for pair in options.items() for part in pair)]) == 0
    shards = replace(data, path=DataConfig.path, shards=str(tmp_path / "latents"), streams=2)
    return replace(train_config, data=shards)


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
    with pytest.raises(InputError, match="own_samples: shards don't say"):
        Trainer(replace(sharded, own_samples=OwnSamplesConfig(error_share=0.5)))
    with pytest.raises(InputError, match="expected shards alone"):
        replace(sharded.data, keep=0.5)
    with pytest.raises(InputError, match="seed: 0, asked for 5"):
        Trainer(replace(sharded, seed=5))
