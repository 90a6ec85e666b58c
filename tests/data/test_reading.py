"""Clips that are images: probing, reading, stamps, and what a broken one says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_files import jpeg
from encoding import encode, write_noise
from toy import Toy

from contrastive_i2v.data import decoding
from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.images import read_image
from contrastive_i2v.data.reading import ClipReader, hash_clip, probe_clip, read_clip, stamp_clip
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


@pytest.mark.parametrize("orders", [([0, 5, 10], [3]), ([7], [2, 8]), ([59, 0], [59])])
def test_one_opening_reads_what_two_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orders: Any) -> None:
    """Of a header that lies too, whose packets are counted, and for reads that go back."""
    clip = Clip(write_noise(tmp_path / "a.mp4"), "a caption")
    opened: list[Path] = []
    whole = decoding.open_container
    monkeypatch.setattr(decoding, "open_container", lambda path, *rest: opened.append(path) or whole(path, *rest))
    with ClipReader(clip) as video:
        assert not opened and video.probe() == VideoInfo(60, 25.0, 32, 48)
        found = [video.read(orders[0])]
        assert len(opened) == 1
        found += [video.read(orders[1]), video.read(orders[0])]
        assert video.probe() == VideoInfo(60, 25.0, 32, 48)
        assert torch.equal(video.read(orders[0]), found[0])  # from the start again
    for indices, frames in zip((*orders, orders[0]), found, strict=True):
        assert torch.equal(frames, read_clip(clip, indices))
    monkeypatch.setattr(decoding.PyavVideo, "count", decoding.PyavVideo.count_packets)
    with ClipReader(clip) as video:
        assert video.probe().frames == 60 and torch.equal(video.read(orders[0]), found[0])


def test_a_reader_names_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    with ClipReader(Clip(tmp_path / "a.mp4", "")) as video:
        for ask in (video.probe, lambda: video.read([0])):
            with pytest.raises(VideoError, match=r"a\.mp4: can't be decoded"):
                ask()
    good = write_noise(tmp_path / "b.mp4")
    with ClipReader(Clip(good, "")) as video:
        with pytest.raises(VideoError, match="has no frame 60"):
            video.read([0, 60])
        assert torch.equal(video.read([0]), read_clip(Clip(good, ""), [0]))
