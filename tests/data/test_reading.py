"""Clips that are images: probing, reading, stamps, and what a broken one says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from dataset_files import jpeg
from encoding import encode
from toy import Toy

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.images import read_image
from contrastive_i2v.data.reading import hash_clip, probe_clip, read_clip, stamp_clip
from contrastive_i2v.data.types import Clip, Images
from contrastive_i2v.data.video import VideoError, VideoInfo, resize_frames
from contrastive_i2v.system import Window

PAIR = Images(("a.jpg", "b.jpg"))


@pytest.fixture
def pair(tmp_path: Path) -> Clip:
    for number, name in enumerate(PAIR.names):
        jpeg(tmp_path / name, number)
    return Clip(tmp_path, "make it snow", part=PAIR)


def test_images_are_frames(pair: Clip) -> None:
    expected = torch.cat([read_image(pair.path / name) for name in PAIR.names])
    assert torch.equal(read_clip(pair, [1, 0]), expected.flip(0))
    assert probe_clip(pair) == VideoInfo(2, 1.0, 16, 16)
    assert pair.where == pair.path / "a.jpg"
    with pytest.raises(VideoError, match="a.jpg: has no frame 2"):
        read_clip(pair, [2])


def test_a_stamp_changes_with_every_image(pair: Clip) -> None:
    stamp, content = stamp_clip(pair), hash_clip(pair)
    other = pair.path / "b.jpg"
    os.utime(other, ns=(0, 0))
    assert stamp_clip(pair) != stamp and hash_clip(pair) == content
    jpeg(other, 3)
    assert hash_clip(pair) != content
    assert stamp_clip(Clip(pair.path, "x", part=Images(("a.jpg", "b.jpg"), 2.0))) != stamp_clip(pair)
    other.unlink()
    with pytest.raises(VideoError, match="a.jpg: can't be read"):
        stamp_clip(pair)


def test_images_of_two_sizes_and_none_at_all(pair: Clip) -> None:
    jpeg(pair.path / "b.jpg", 1, size=8)
    with pytest.raises(VideoError, match="a.jpg: its images are of 16x16 and 8x8 pixels; expected one size"):
        read_clip(pair, [0, 1])
    (pair.path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(VideoError, match="b.jpg: not a readable image"):
        read_clip(pair, [0, 1])


def test_a_pair_is_one_window_of_the_default_frames(pair: Clip, tmp_path: Path) -> None:
    system = Toy(Window(2))
    dataset, skipped = encode([pair], system, tmp_path / "cache", frames=FramesConfig())
    assert not skipped and len(dataset) == 1
    images = resize_frames(read_clip(pair, [0, 1]), 16)
    assert torch.equal(dataset[0].raw, system.codec.encode(images[None])[0])
    assert float(dataset[0].fps) == 1 and dataset[0].present.all()
    _, again = encode([pair, pair], system, tmp_path / "cache")
    assert not again
    changed, _ = encode([Clip(pair.path, pair.caption, part=Images(PAIR.names[::-1]))], system, tmp_path / "cache")
    assert torch.equal(changed[0].raw, dataset[0].raw.flip(0))  # another key
