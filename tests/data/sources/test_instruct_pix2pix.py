"""InstructPix2Pix's folder and its parquet files, whole and hostile; a pair is a clip of two frames."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from dataset_files import CAPTIONS, READ, found, image_bytes, left_out, write, write_pairs
from PIL import Image
from pyarrow import parquet

from contrastive_i2v.data.reading import probe_clip, read_clip
from contrastive_i2v.data.sources import SourceConfig, read
from contrastive_i2v.data.types import Images, NoClipLeft, ParquetRow
from contrastive_i2v.data.video import VideoError
from contrastive_i2v.errors import InputError


def test_the_original_folder_is_divided_90_5_5_by_position(tmp_path: Path) -> None:
    names = write_pairs(tmp_path, 41)
    parts = {"train": names[:36], "val": names[36:38], "test": names[38:]}  # floor(36.9), floor(38.95)
    for split, expected in parts.items():
        dataset = read(tmp_path, SourceConfig(split=split))
        assert [clip.path.name for clip in dataset.clips] == expected
        assert (dataset.format, dataset.split, dataset.skipped) == ("instruct-pix2pix", split, [])
    assert [read(tmp_path, purpose=purpose).split for purpose in ("train", "validation", "test")] == list(parts)
    clip = read(tmp_path).clips[3]
    assert clip.caption == 'make it, "3" winter' and clip.part == Images(("1234_0.jpg", "1234_1.jpg"))
    frames = [torch.from_numpy(_pixels(clip.path / name)) for name in clip.part.names]
    assert torch.equal(read_clip(clip, [0, 1]), torch.stack(frames).permute(0, 3, 1, 2))
    info = probe_clip(clip)
    assert (info.frames, info.height, info.width) == (2, 16, 16)


def _pixels(path: Path) -> Any:
    import numpy as np

    return np.array(Image.open(path))


def test_one_of_a_folders_seeds_is_drawn_by_seed_and_clip(tmp_path: Path) -> None:
    write_pairs(tmp_path, 30, seeds=3)
    draws = [[clip.where.name for clip in read(tmp_path, seed=seed).clips] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert set(draws[0]) == {"1234_0.jpg", "1235_0.jpg", "1236_0.jpg"}
    fewer = read(tmp_path, SourceConfig(split="val"), seed=0).clips  # whatever other clips there are
    write(tmp_path / "seeds.json", [[clip.path.name, ["1234", "1235", "1236"]] for clip in fewer] * 20)
    assert read(tmp_path, SourceConfig(split="train"), seed=0).clips[: len(fewer)] == fewer


def test_entries_of_the_folder_that_cant_be_used(tmp_path: Path) -> None:
    good, unreadable, uncaptioned, gone = write_pairs(tmp_path / "set", 4)
    (tmp_path / "set" / unreadable / "prompt.json").write_text("{")
    write(tmp_path / "set" / uncaptioned / "prompt.json", {"input": "a lake", "edit": " "})
    (tmp_path / "set" / gone / "1234_1.jpg").unlink()
    write(tmp_path / "out/prompt.json", {"edit": "stolen"})
    for side in (0, 1):
        (tmp_path / f"out/1_{side}.jpg").touch()
    odd: list[object] = [["../out", ["1"]], [str(tmp_path / "out"), ["1"]], [good, ["../../out/1"]], [".", ["1"]], 3]
    entries = [[name, ["1234"]] for name in (good, unreadable, uncaptioned, gone)]
    write(
        tmp_path / "set/seeds.json",
        [*entries, *odd, [good, []], [good, "1234"], ["\ud800", ["1"]], ["a" * 300, ["1"]]] * 2,
    )
    dataset = read(tmp_path / "set")
    assert [clip.path.name for clip in dataset.clips] == [good] * 2
    reasons = left_out(dataset)
    assert reasons[0].startswith("is not JSON") and reasons[1:3] == ["no edit in prompt.json", "no such file"]
    assert all("without a slash" in reason for reason in reasons[3:7])
    assert all("expected [folder, [seed, ..]]" in reason for reason in reasons[7:10])
    for content in ("{}", "[", '"a"'):
        (tmp_path / "set/seeds.json").write_text(content)
        with pytest.raises(InputError, match="seeds.json: (is not JSON|expected a list)"):
            read(tmp_path / "set")


def write_table(path: Path, rows: Sequence[dict[str, Any]], group: int = 2) -> Path:
    """As the datasets library does: an image is a struct of bytes and path."""
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    names = list(rows[0])
    fields = [(name, image if name.endswith("image") else pyarrow.string()) for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows), pyarrow.schema(fields)), path, row_group_size=group)
    return path


def row(number: int, original: str = "original_image", **more: Any) -> dict[str, Any]:
    images = {original: image_bytes(number), "edited_image": image_bytes(100 + number)}
    cells: dict[str, Any] = {name: {"bytes": content, "path": None} for name, content in images.items()}
    return {**cells, "edit_prompt": CAPTIONS[number % 3], **more}


def test_both_parquet_layouts(tmp_path: Path) -> None:
    full = [row(n, original_prompt="a lake", edited_prompt="a frozen lake") for n in range(5)]
    write_table(tmp_path / "full/data/train-00000-of-00002.parquet", full[:3])
    write_table(tmp_path / "full/data/train-00001-of-00002.parquet", full[3:])
    few = write_table(tmp_path / "few/train.parquet", [row(n, "input_image") for n in range(5)])
    for path in (tmp_path / "full", tmp_path / "few", few):
        dataset = read(path)
        assert (dataset.format, dataset.split) == ("instruct-pix2pix", "train")
        assert [clip.caption for clip in dataset.clips] == [*READ, *READ[:2]]
        for number in (0, 2, 1, 4, 3, 0):  # backwards, too
            clip = dataset.clips[number]
            frames = read_clip(clip, [0, 1, 1])
            assert frames.shape == (3, 3, 16, 24)
            assert [int(frame.float().mean()) for frame in frames] == [number, 100 + number, 100 + number]
            assert (probe_clip(clip).frames, probe_clip(clip).height, probe_clip(clip).width) == (2, 16, 24)
    with pytest.raises(InputError, match="has no split val; expected train"):
        read(few, SourceConfig(split="val"))
    with pytest.raises(InputError, match="has no split for validation; expected train"):
        read(few, purpose="validation")


@pytest.mark.fault(
    "parquet files are cut off, or their cells hold no image or a path",
    "each row is named and left out; no path is followed",
)
def test_hostile_parquet_files(tmp_path: Path) -> None:
    empty = {"bytes": None, "path": "/etc/passwd"}
    rows = [row(0), row(1, edit_prompt=None), row(2, edited_image={"bytes": b"no image", "path": None})]
    rows += [row(3, edited_image=empty), row(4, edited_image=None)]
    rows += [row(5, edited_image={"bytes": image_bytes(9, (8, 8)), "path": None})]
    path = write_table(tmp_path / "data/train-0.parquet", rows)
    (tmp_path / "data/train-1.parquet").write_bytes(path.read_bytes()[:-40])  # cut off
    (tmp_path / "data/train-2.parquet").write_bytes(b"PAR1" * 9)
    dataset = read(tmp_path)
    assert [clip.part.row + 2 * clip.part.group for clip in dataset.clips if isinstance(clip.part, ParquetRow)] == [
        0,
        2,
        3,
        4,
        5,
    ]
    assert left_out(dataset)[0] == "no edit_prompt in row 1 of group 0"
    assert all(reason.startswith("not a readable parquet file") for reason in left_out(dataset)[1:])
    assert read_clip(dataset.clips[0], [1]).float().mean() == 100
    for clip, message in zip(
        dataset.clips[1:], ("not a readable image", *["holds no image"] * 2, "24x16 and 8x8"), strict=True
    ):
        with pytest.raises(VideoError, match=message) as raised:
            read_clip(clip, [0, 1])
        assert str(raised.value).startswith(str(path))
    with pytest.raises(InputError, match="train-2.parquet: not a readable parquet file"):
        read(tmp_path / "data/train-2.parquet")


@pytest.mark.fault("pages of a parquet file are overwritten", "it is named")
def test_a_parquet_file_with_damaged_pages(tmp_path: Path) -> None:
    path = write_table(tmp_path / "train.parquet", [row(n) for n in range(4)])
    content = bytearray(path.read_bytes())
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    content[60:-footer] = bytes(len(content) - 60 - footer)
    path.write_bytes(content)
    try:
        clips = read(path).clips
    except NoClipLeft:
        return
    for clip in clips:
        with pytest.raises(VideoError, match="train.parquet"):
            read_clip(clip, [0, 1])


def test_a_parquet_file_whose_text_is_not_utf_8(tmp_path: Path) -> None:
    path = write_table(tmp_path / "train.parquet", [row(n) for n in range(2)])
    table = parquet.read_table(path)
    texts = pyarrow.array([b"fine", b"\xff"]).view(pyarrow.string())
    parquet.write_table(table.set_column(table.column_names.index("edit_prompt"), "edit_prompt", texts), path)
    with pytest.raises(NoClipLeft, match="train.parquet: can't be read, row group 0 is damaged .*decode byte 0xff"):
        read(path)


def test_other_parquet_files_are_no_pairs(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([{"url": "a", "caption": "b"}]), tmp_path / "00000.parquet")
    write(tmp_path / "a.txt", "a dog")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.parquet").write_bytes(b"half written")
    assert found(read(tmp_path), tmp_path) == {"a.mp4": "a dog"}


def test_without_pyarrow_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / "train.parquet", [row(0)])
    whole = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return whole(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install pyarrow"):
        read(tmp_path)
