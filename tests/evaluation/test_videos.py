"""The true clips of an evaluation and the finished videos that answer them: which frames, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from contrastive_i2v.data.video import read_frames, resize_frames, to_uint8, write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.videos import (
    ReferenceClip,
    match_videos,
    read_finished_frames,
    read_reference_set,
    read_true_frames,
)


@pytest.fixture
def folder(clips: Path, tmp_path: Path) -> Path:
    """The two test clips (16 x 16, 25 frames, one second), to be changed."""
    return Path(shutil.copytree(clips / "test", tmp_path / "test"))


def first(folder: Path, frames: int = 4) -> ReferenceClip:
    return read_reference_set(folder, frames=frames, resolution=16).clips[0]


def write_clip(path: Path, frames: int, *, size: tuple[int, int] = (16, 16), fps: float = 5.0, text: str = "") -> None:
    video = torch.arange(frames).mul(9)[:, None, None, None].expand(-1, 3, *size)
    write_video(path, video.to(torch.uint8), fps)
    if text:
        path.with_suffix(".txt").write_text(text)


def test_frames_are_the_first_valid_ones(folder: Path) -> None:
    reference = read_reference_set(folder, frames=4, resolution=8)
    assert [clip.name for clip in reference.clips] == ["00000", "00001"]
    assert [clip.indices for clip in reference.clips] == [(0, 5, 10, 15)] * 2
    expected = to_uint8(resize_frames(read_frames(folder / "00001.mp4", [0, 5, 10, 15]), 8))
    assert torch.equal(read_true_frames(reference.clips[1], (8, 8)), expected)
    twice = read_reference_set(folder, frames=4, resolution=8, frame_rate=10)
    assert twice.clips[0].indices == (0, 3, 5, 8)  # 25 fps, every 2.5th


def test_a_reference_set_may_be_rectangular(folder: Path, tmp_path: Path) -> None:
    reference = read_reference_set(folder, frames=4, resolution=(8, 12))
    clip = reference.clips[0]
    assert reference.size == (8, 12) and reference.setting["resolution"] == "8x12"
    square = read_reference_set(folder, frames=4, resolution=(8, 8))
    assert square.setting == read_reference_set(folder, frames=4, resolution=8).setting
    assert square.setting["resolution"] == "8"
    true = read_true_frames(clip, reference.size)
    assert torch.equal(true, to_uint8(resize_frames(read_frames(folder / "00000.mp4", [0, 5, 10, 15]), (8, 12))))
    assert true.shape == (4, 3, 8, 12)
    write_clip(tmp_path / "v.mp4", 4, size=(8, 12))
    assert torch.equal(
        read_finished_frames(tmp_path / "v.mp4", clip, (8, 12)), read_frames(tmp_path / "v.mp4", range(4))
    )
    with pytest.raises(InputError, match=re.escape("v.mp4: is 12x8 pixels; expected 8x12, or 16x16 as 00000.mp4 has")):
        read_finished_frames(tmp_path / "v.mp4", clip, (12, 8))


def test_the_first_clips_alone(folder: Path) -> None:
    assert [clip.name for clip in read_reference_set(folder, frames=4, resolution=8, limit=1).clips] == ["00000"]


def test_short_clips_are_left_out_and_named(folder: Path) -> None:
    write_clip(folder / "a.mp4", 3, text="too short")
    reference = read_reference_set(folder, frames=4, resolution=16)
    assert [clip.name for clip in reference.clips] == ["00000", "00001"]
    assert [(one.path.name, one.reason) for one in reference.skipped] == [
        ("a.mp4", "holds 3 frames at 5 a second, not 4")
    ]


def test_no_clip_that_is_long_enough_is_an_error(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"test: none of its 2 clips .* 00000.mp4: holds 5 frames .*, not 9; .*--frames"
    ):
        read_reference_set(folder, frames=9, resolution=16)
    with pytest.raises(InputError, match="frames: expected at least 2"):
        read_reference_set(folder, frames=1, resolution=16)


@pytest.mark.fault("a true video can't be opened", "its clip is named and left out of the evaluation")
def test_a_corrupt_clip_is_named_and_left_out(folder: Path) -> None:
    (folder / "00001.mp4").write_bytes(b"not a video")
    reference = read_reference_set(folder, frames=4, resolution=16)
    assert "00001" not in [clip.name for clip in reference.clips] and reference.clips
    assert [one.path.name for one in reference.skipped] == ["00001.mp4"]
    assert reference.skipped[0].reason.startswith("can't be decoded, the file is corrupt or not a video")
    for video in folder.glob("*.mp4"):
        video.write_bytes(b"not a video")
    with pytest.raises(
        InputError, match=r"none of its \d+ clips can be evaluated, the first: \d+\.mp4: can't be decoded"
    ):
        read_reference_set(folder, frames=4, resolution=16)


def test_clips_of_one_file_and_of_folders_have_names_of_their_own(clips: Path, tmp_path: Path) -> None:
    for at in ("a", "b"):
        (tmp_path / at).mkdir()
        shutil.copy(clips / "test" / "00000.mp4", tmp_path / at / "x.mp4")
    (tmp_path / "a" / "metadata.csv").write_text("file_name,text,start\nx.mp4,early,0\nx.mp4,late,0.2\n")
    (tmp_path / "b" / "x.txt").write_text("other")
    reference = read_reference_set(tmp_path, frames=4, resolution=16)
    assert [(clip.name, clip.indices[0]) for clip in reference.clips] == [("a-x", 0), ("a-x-2", 5), ("b-x", 0)]


def test_stamp_changes_with_what_is_shown_and_not_with_the_place(folder: Path, tmp_path: Path) -> None:
    stamp = first(folder).stamp
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert first(moved).stamp == stamp
    assert first(folder, frames=3).stamp != stamp
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("over a", "above a"))
    assert first(folder).stamp != stamp
    shutil.copy(moved / "00001.mp4", moved / "00000.mp4")
    assert first(moved).stamp != stamp


def test_finished_videos_match_by_name_stem_or_metadata(folder: Path, tmp_path: Path) -> None:
    clips = read_reference_set(folder, frames=4, resolution=16).clips
    finished = tmp_path / "finished"
    write_clip(finished / "deep" / "00000.mp4", 4)  # by its stem
    write_clip(finished / "00001.mp4", 4)
    write_clip(finished / "extra.mp4", 4)
    found, extra = match_videos(finished, clips)
    assert found == {"00000": finished / "deep" / "00000.mp4", "00001": finished / "00001.mp4"}
    assert extra == [finished / "extra.mp4"]
    (finished / "metadata.csv").write_text("file_name,clip\nextra.mp4,00001.mp4\n")
    assert match_videos(finished, clips)[0]["00001"] == finished / "extra.mp4"
    (finished / "metadata.csv").write_text("file_name,clip\ngone.mp4,00001\n")
    with pytest.raises(InputError, match=r"names gone\.mp4 for clip 00001"):
        match_videos(finished, clips)


def test_a_missing_pair_and_an_empty_folder_are_named(folder: Path, tmp_path: Path) -> None:
    clips = read_reference_set(folder, frames=4, resolution=16).clips
    write_clip(tmp_path / "finished" / "00001.mp4", 4)
    with pytest.raises(InputError, match=r"no video for 1 of 2 clips \(00000\); expected 00000\.mp4"):
        match_videos(tmp_path / "finished", clips)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no videos"):
        match_videos(tmp_path / "empty", clips)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        match_videos(tmp_path / "nowhere", clips)


def test_a_finished_video_is_read_frame_by_frame(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write_clip(path, 4, fps=24)  # its rate doesn't matter: frame i answers frame i
    assert torch.equal(read_finished_frames(path, first(folder), (16, 16)), read_frames(path, range(4)))


def test_a_filtered_copy_gives_the_clips_own_frames(folder: Path, tmp_path: Path) -> None:
    clip = first(folder)
    copy = Path(shutil.copy(clip.clip.path, tmp_path / "copy.mp4"))
    assert torch.equal(read_finished_frames(copy, clip, (8, 8)), read_true_frames(clip, (8, 8)))


@pytest.mark.parametrize(
    ("frames", "size", "message"),
    [
        (5, (16, 16), "v.mp4: has 5 frames; expected 4, one for each frame that is evaluated (or 25 at 25 a second"),
        (4, (16, 24), "v.mp4: is 24x16 pixels; expected 8x8, or 16x16 as 00000.mp4 has: give the --resolution"),
    ],
)
def test_another_length_or_size_is_refused(
    folder: Path, tmp_path: Path, frames: int, size: tuple[int, int], message: str
) -> None:
    write_clip(tmp_path / "v.mp4", frames, size=size)
    with pytest.raises(InputError, match=re.escape(message)):
        read_finished_frames(tmp_path / "v.mp4", first(folder), (8, 8))
