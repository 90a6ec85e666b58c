"""Which sizes there are, and which one a clip is trained at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoding import FRAMES, write_noise
from toy import Toy

from contrastive_i2v.data import examples
from contrastive_i2v.data.buckets import Bucket, aspect_ratio_sizes, bucket_rows, nearest_bucket
from contrastive_i2v.data.examples import encode_clips
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import read_frames, resize_frames, write_video

WIDE = [(192, 320), (224, 288), (256, 256), (288, 224), (320, 192)]


@pytest.mark.parametrize(
    ("size", "largest", "multiple", "sizes"),
    [
        ((256, 256), 16 / 9, 8, WIDE),
        ((256, 256), 1.3, 8, WIDE[1:4]),
        ((256, 256), 1.35, 24, [(216, 288), (240, 264), (264, 240), (288, 216)]),  # an eighth of 256 is near 24
        ((64, 64), 1.3, 8, [(56, 72), (64, 64), (72, 56)]),
        ((32, 32), 1.0, 16, [(32, 32)]),
    ],
)
def test_automatic_sizes(size: tuple[int, int], largest: float, multiple: int, sizes: list[tuple[int, int]]) -> None:
    assert aspect_ratio_sizes(size, largest, multiple) == sizes


@pytest.mark.parametrize(
    ("frame", "sizes", "expected"),
    [
        ((720, 1280), WIDE, (192, 320)),
        ((480, 640), WIDE, (224, 288)),
        ((1280, 720), WIDE, (320, 192)),
        ((1080, 1080), WIDE, (256, 256)),
        ((720, 1280), [(144, 256), (288, 512), (512, 288)], (288, 512)),  # the larger of two alike
        ((160, 280), [(144, 256), (288, 512), (512, 288)], (144, 256)),  # the smaller: 288 would enlarge
        ((240, 426), [(256, 456), (128, 128)], (256, 456)),  # 7 % enlarged is better than 44 % cropped
        ((64, 64), [(128, 128), (128, 256)], (128, 128)),  # none is small enough
    ],
)
def test_a_clip_goes_where_least_is_lost(
    frame: tuple[int, int], sizes: list[tuple[int, int]], expected: tuple[int, int]
) -> None:
    assert sizes[nearest_bucket(*frame, sizes)] == expected


def test_rows_share_the_pixels() -> None:
    sizes = ((256, 256, 2), (128, 128, 2), (512, 512, 2), (192, 320, 2), (256, 256, 4))
    assert bucket_rows([Bucket(*size) for size in sizes], 8 * 256**2, least=2) == [4, 16, 2, 4, 2]
    assert bucket_rows([Bucket(512, 512, 2)], 2 * 256**2, least=1) == [1]


def test_each_clip_is_encoded_at_its_bucket_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = write_noise(tmp_path / "wide.mp4")  # 32 x 48
    tall = tmp_path / "tall.mp4"
    write_video(tall, read_frames(wide, range(60)).mT, 25.0)
    clips, sizes = [Clip(wide, "wide"), Clip(tall, "tall")], [(16, 24), (24, 16), (16, 16)]

    def encode(system: Toy) -> examples.ExampleDataset:
        options = {"cache_dir": tmp_path / "cache", "resolution": 16, "frames": FRAMES, "seed": 0, "progress": False}
        return encode_clips(clips, system, buckets=sizes, **options)[0]  # type: ignore[arg-type]

    dataset = encode(Toy())
    assert dataset.sizes == [(16, 24), (24, 16)]
    assert dataset.buckets() == {Bucket(16, 24, 2): [0, 1], Bucket(24, 16, 2): [2, 3]}
    assert [dataset.videos(some) for some in ([0, 1], [0, 2])] == [1, 2]
    for number, size in ((0, (16, 24)), (2, (24, 16))):
        index = dataset.examples[number]
        expected = Toy().codec.encode(resize_frames(read_frames(clips[index.clip].path, index.rows), size)[None])[0]
        assert torch.equal(dataset[number].raw, expected)
    monkeypatch.setattr(examples, "probe_clip", None)  # the cache says which bucket it was
    system = Toy()
    assert encode(system).buckets() == dataset.buckets() and system.codec.frames == 0


def test_windows_are_as_long_as_the_clip_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [Clip(write_noise(tmp_path / f"{n}.mp4", frames=n), "") for n in (60, 30, 10)]  # 12, 6 and 2 are valid

    def encode(system: Toy) -> examples.ExampleDataset:
        options = {"cache_dir": tmp_path / "cache", "resolution": 16, "frames": FRAMES, "seed": 0, "progress": False}
        dataset, skipped = encode_clips(clips, system, lengths=(8, 4), **options)  # type: ignore[arg-type]
        assert [one.path.stem for one in skipped] == ["10"] and "fewer than 4 frames" in skipped[0].reason
        return dataset

    dataset = encode(Toy())
    clips_of = {bucket: {dataset.examples[n].clip for n in some} for bucket, some in dataset.buckets().items()}
    assert clips_of == {Bucket(16, 16, 4): {1}, Bucket(16, 16, 8): {0}} and dataset.frames == 2
    for number, example in enumerate(dataset.examples):
        assert len(example.rows) == len(example.present) == len(dataset[number].raw)
        expected = Toy().codec.encode(resize_frames(read_frames(clips[example.clip].path, example.rows), 16)[None])[0]
        assert torch.equal(dataset[number].raw, expected)
    system = Toy()
    assert encode(system).examples == dataset.examples
