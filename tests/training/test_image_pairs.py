"""InstructPix2Pix on image pairs, end to end: from the folder and from parquet."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
import torch
from dataset_files import write_pairs
from pyarrow import parquet

from contrastive_i2v.cli.evaluation_methods import load_reference
from contrastive_i2v.cli.evaluation_options import SuiteOptions
from contrastive_i2v.cli.main import main
from contrastive_i2v.data.cache import load_clip
from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.reading import read_clip
from contrastive_i2v.data.sources import SourceConfig, read
from contrastive_i2v.data.types import Images
from contrastive_i2v.data.video import resize_frames
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.videos import read_true_frames
from contrastive_i2v.training.config import PreviewConfig, TrainConfig, load_config
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.trainer import Trainer


def pairs(root: Path) -> Path:
    write_pairs(root / "set", 40, seeds=2)
    return root / "set"


def test_training_on_pairs_and_a_resume_with_other_draws(
    train_config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = pairs(tmp_path)
    data = replace(train_config.data, path=root, validation_path=root, frames=FramesConfig())
    preview = PreviewConfig(every=4, clips=2, frames=2, steps=2)
    config = replace(train_config, data=data, steps=4, preview=preview)
    trainer = Trainer(config)
    assert len(trainer.dataset) == 36  # a window a pair, of the training split
    clip = trainer.dataset.clips[5]
    system = trainer.system
    images = resize_frames(read_clip(clip, [0, 1]), 16)
    assert torch.equal(trainer.dataset[5].raw, system.codec.encode(images[None].to(system.device))[0].cpu().float())
    trainer.run()
    assert all(math.isfinite(row["loss"]) for row in read_log(config.output / "log.jsonl") if "loss" in row)
    assert list((config.output / "previews").iterdir())
    assert f"{root}: instruct-pix2pix, split train, 36 clips" in capsys.readouterr().out
    assert load_config(TrainConfig, config.output / "config.yaml") == config
    other = replace(config, steps=6, resume=True, data=replace(data, source=SourceConfig(split="val")))
    with pytest.raises(InputError, match="data.source.split: None -> val"):
        Trainer(other)


def test_pairs_in_parquet_give_the_same_examples_by_the_command(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = pairs(tmp_path)
    clips = read(root).clips
    rows = []
    for clip in clips:
        assert isinstance(clip.part, Images)
        source, edited = ({"bytes": (clip.path / name).read_bytes(), "path": name} for name in clip.part.names)
        rows.append({"edit_prompt": clip.caption, "input_image": source, "edited_image": edited})
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train-0.parquet", row_group_size=10)
    options = ["--model", str(pipeline_folder), "--data.resolution", "16", "--data.cache-dir", str(tmp_path / "cache")]
    main(["encode", *options, "--data.path", str(root), "--data.source.split", "train"])
    main(["encode", *options, "--data.path", str(tmp_path / "train-0.parquet")])
    said = capsys.readouterr().out
    assert said.count(f"36 windows of 36 clips in {tmp_path / 'cache'}") == 2
    cached = [load_clip(file) for file in (tmp_path / "cache").rglob("*.safetensors")]
    sums = sorted(float(one.raw.sum()) for one in cached if one is not None)
    assert len(sums) == 72 and sums[::2] == sums[1::2]  # each example twice, once of each kind


def test_pairs_can_be_evaluated(tmp_path: Path) -> None:
    root = pairs(tmp_path)
    options = SuiteOptions(data=root, frames=2, resolution=16)
    reference = load_reference(options, ["first-frame"])
    assert [clip.clip.path.name for clip in reference.clips] == ["0000038", "0000039"]  # the test split
    assert read_true_frames(reference.clips[0], (16, 16)).shape == (2, 3, 16, 16)
    val = load_reference(replace(options, source=SourceConfig(split="val")), ["first-frame"])
    assert [clip.clip.path.name for clip in val.clips] == ["0000036", "0000037"]
    assert len({clip.name for clip in reference.clips}) == len({clip.content for clip in reference.clips}) == 2
