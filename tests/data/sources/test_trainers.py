"""Dataset files of musubi-tuner and diffusion-pipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dataset_files import CAPTIONS, READ, found, jpeg, left_out, touch, write

from contrastive_i2v.data.images import read_image
from contrastive_i2v.data.reading import probe_clip, read_clip
from contrastive_i2v.data.sources import read
from contrastive_i2v.data.types import Clip, Images
from contrastive_i2v.errors import InputError


def test_musubi_folders_of_videos_and_images(tmp_path: Path) -> None:
    toml = f"""
[general]
resolution = [960, 544]
caption_extension = ".caption"
batch_size = 1

[[datasets]]
video_directory = "{tmp_path}/videos"
target_frames = [1, 25, 45]

[[datasets]]
image_directory = "images"  # beside this file
caption_extension = ".txt"
"""
    file = write(tmp_path / "dataset.toml", toml)
    touch(tmp_path, "videos/a.mp4", "videos/b.webm", "videos/.c.mp4")
    write(tmp_path / "videos/a.caption", CAPTIONS[1])
    jpeg(tmp_path / "images/i.jpg", 0)
    write(tmp_path / "images/i.txt", "a still")
    dataset = read(file)
    assert dataset.format == "musubi-tuner"
    assert found(dataset, tmp_path) == {"videos/a.mp4": READ[1], "images/i.jpg": "a still"}
    assert len(dataset.skipped) == 1 and "no caption: " in left_out(dataset)[0] and "b.caption" in left_out(dataset)[0]
    still = dataset.clips[1]
    assert probe_clip(still).frames == 1 and torch.equal(read_clip(still, [0]), read_image(tmp_path / "images/i.jpg"))


def test_musubi_json_lines_with_folders_of_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"video_path": "a.mp4", "caption": CAPTIONS[0]},
        {"video_path": str(tmp_path / "lists/frames"), "caption": CAPTIONS[1]},
        {"video_path": "gone.mp4", "caption": "c"},
        {"video_path": "here.mp4", "caption": CAPTIONS[2]},
        {"video_path": "a.mp4", "caption": ""},
    ]
    write(tmp_path / "lists/videos.jsonl", "\n".join(map(json.dumps, rows)))
    file = write(tmp_path / "d.toml", '[[datasets]]\nvideo_jsonl_file = "lists/videos.jsonl"\nsource_fps = 12.5\n')
    touch(tmp_path, "lists/a.mp4", "lists/here.mp4", "cwd/here.mp4")
    names = [f"{n:03}.png" for n in (10, 2, 1)]
    for number, name in enumerate(names):
        jpeg(tmp_path / "lists/frames" / name, number)
    monkeypatch.chdir(tmp_path / "cwd")
    dataset = read(file)
    assert dataset.clips == [
        Clip(tmp_path / "lists/a.mp4", READ[0]),
        Clip(tmp_path / "lists/frames", READ[1], part=Images(("001.png", "002.png", "010.png"), 12.5)),
        Clip(Path("here.mp4"), READ[2]),  # the working directory goes first
    ]
    assert left_out(dataset) == ["no such file", "no caption"]
    assert probe_clip(dataset.clips[1]).fps == 12.5
    write(file, '[[datasets]]\nvideo_jsonl_file = "lists/videos.jsonl"\n')
    assert "no source_fps" in left_out(read(file))[0]


@pytest.mark.parametrize(
    "content, message",
    [
        ("[[datasets]]\n", "dataset 1: expected one of video_directory, .*, got none"),
        ('[[datasets]]\nvideo_directory = "a"\nimage_directory = "b"\n', "got video_directory and image_directory"),
        ('[[datasets]]\nvideo_directory = "nowhere"\n', "dataset 1: .*nowhere can't be listed"),
        ('[[datasets]]\nvideo_directory = "a\\u0000"\n', "can't be listed"),
        ('[[datasets]]\nvideo_jsonl_file = "nowhere.jsonl"\n', "nowhere.jsonl: is no regular file"),
        ('[[datasets]]\nvideo_directory = "."\nsource_fps = -1\n', "source_fps is -1; expected frames a second"),
        ('[[datasets]]\nvideo_directory = "."\ncaption_extension = 3\n', "caption_extension is 3"),
        ('[[datasets]]\nvideo_directory = "."\ncaption_extension = "./../x"\n', "caption_extension is ./../x"),
        ("datasets = 3\n", r"expected \[general\] and \[\[datasets\]\]"),
        ("[[directory]]\nnum_repeats = 1\n", "directory 1: expected a folder as path, got None"),
        ("directory = 3\n", r"expected \[\[directory\]\]"),
        ("[[datasets\n", "is not TOML"),
        ("a = 1\n", "no format was recognised. Looked for .*musubi-tuner.*diffusion-pipe"),
    ],
)
def test_mistakes(content: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "d.toml", content)
    with pytest.raises(InputError, match=message):
        read(file)


def test_diffusion_pipe_takes_a_missing_caption_for_an_empty_one(tmp_path: Path) -> None:
    toml = (
        f'resolutions = [512]\n[[directory]]\npath = "{tmp_path}/one"\nnum_repeats = 10\n[[directory]]\npath = "two"\n'
    )
    file = write(tmp_path / "dataset.toml", toml)
    touch(tmp_path, "one/a.mp4", "one/b.mp4", "two/c.png", "two/notes.md")
    write(tmp_path / "one/a.txt", CAPTIONS[1])
    (tmp_path / "two/c.txt").write_bytes(b"\xff")
    dataset = read(file)
    assert dataset.format == "diffusion-pipe"
    assert found(dataset, tmp_path) == {"one/a.mp4": READ[1], "one/b.mp4": ""}
    assert "can't be read as UTF-8" in left_out(dataset)[0]
    assert str(dataset) == f"{file}: diffusion-pipe, 2 clips, 1 of them with an empty caption, 1 left out"
