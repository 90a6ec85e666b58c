"""Both layouts of a captioned folder, mixed and nested, and every mistake a folder can hold."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from contrastive_i2v.data.examples import report_skipped
from contrastive_i2v.data.sources import SourceConfig, read, read_folder
from contrastive_i2v.data.types import Clip, Skipped
from contrastive_i2v.errors import InputError


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")


def test_text_beside_videos_recursive_and_sorted(tmp_path: Path) -> None:
    _touch(tmp_path, "b.MP4", "a/z.webm", "a/y.mkv", "c.avi", "d.mov", "e.m4v", "image.png", "f.mp4")
    for name in ("b", "a/z", "a/y", "c", "d", "e", "image"):
        (tmp_path / f"{name}.txt").write_text(f"  caption of\n {name} \n")
    clips, skipped = read_folder(tmp_path)
    names = ["a/y.mkv", "a/z.webm", "b.MP4", "c.avi", "d.mov", "e.m4v"]
    assert clips == [Clip(tmp_path / n, f"caption of {Path(n).with_suffix('')}") for n in names]
    assert skipped == [Skipped(tmp_path / "f.mp4", "no caption: no f.txt beside it and no metadata row")]


def test_hidden_files_are_left_alone(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "._a.mp4", ".cache/b.mp4")
    for name in ("a", "._a", ".cache/b"):
        (tmp_path / f"{name}.txt").write_text("text")
    clips, skipped = read_folder(str(tmp_path))
    assert [c.path.name for c in clips] == ["a.mp4"] and not skipped


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    _touch(tmp_path, "outside/a.mp4")
    (tmp_path / "outside/a.txt").write_text("text")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/loop").symlink_to(root)
    clips, _ = read_folder(root)
    assert [c.path for c in clips] == [root / "link" / "a.mp4"]


def test_metadata_csv(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "sub/b.mp4", "c.mp4")
    (tmp_path / "c.txt").write_text("from text")
    (tmp_path / "a.txt").write_text("the metadata row goes before this")
    rows = 'file_name,text,start,end\nsub/b.mp4,"a dog, running",,\na.mp4,second,2.5,4\na.mp4,first,0,2.5\n'
    (tmp_path / "metadata.csv").write_text(rows, encoding="utf-8-sig")  # as Excel writes it
    clips, skipped = read_folder(tmp_path)
    assert clips == [
        Clip(tmp_path / "a.mp4", "second", 2.5, 4.0),
        Clip(tmp_path / "a.mp4", "first", 0.0, 2.5),
        Clip(tmp_path / "c.mp4", "from text"),
        Clip(tmp_path / "sub/b.mp4", "a dog, running"),
    ]
    assert not skipped


def test_metadata_jsonl_below_the_root(tmp_path: Path) -> None:
    _touch(tmp_path, "train/a.mp4", "train/b.mp4", "test/a.mp4")
    rows = [
        {"file_name": "a.mp4", "text": "один\u2028два", "shape": "ring"},
        {"file_name": "./b.mp4", "caption": "b", "start": 1, "end": None},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "train/metadata.jsonl").write_text("\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    (tmp_path / "test/metadata.jsonl").write_text('{"file_name": "a.mp4", "text": " "}\n')
    clips, skipped = read_folder(tmp_path)
    assert clips == [
        Clip(tmp_path / "train/a.mp4", "один два"),
        Clip(tmp_path / "train/b.mp4", "b", 1.0, None),
    ]
    where = f"{tmp_path}/test/metadata.jsonl, line 1"
    assert skipped == [Skipped(tmp_path / "test/a.mp4", f"no caption: {where} has no text")]


def test_unreadable_captions_are_skipped_with_the_reason(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xfa")
    clips, skipped = read_folder(tmp_path)
    assert [c.path.name for c in clips] == ["a.mp4"]
    assert skipped[0] == Skipped(tmp_path / "b.mp4", "no caption: b.txt is empty")
    assert "c.txt can't be read as UTF-8" in skipped[1].reason


def test_no_such_folder_a_file_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder; expected a folder of videos"):
        read_folder(tmp_path / "nowhere")
    _touch(tmp_path, "a/note.md")
    with pytest.raises(InputError, match=r"note\.md: is a file; expected the folder"):
        read_folder(tmp_path / "a/note.md")
    with pytest.raises(InputError, match=r"holds no videos; looked in it and below for \.mp4, \.avi, .*\.webm"):
        read_folder(tmp_path)


def test_no_caption_at_all_names_files_and_the_way_out(tmp_path: Path) -> None:
    _touch(tmp_path, *(f"s/{i}.mp4" for i in range(5)))
    with pytest.raises(InputError) as error:
        read_folder(tmp_path)
    assert "none of its 5 videos has a caption (s/0.mp4, s/1.mp4, s/2.mp4 and 2 more)" in str(error.value)
    assert "NAME.txt" in str(error.value) and "metadata.csv" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "file,caption\na.mp4,x\n",
            r"metadata\.csv: expected the columns file_name and text .*got file, caption",
        ),
        ("file_name,label\na.mp4,x\n", "got file_name, label"),
        ("", "got none"),
        (
            "file_name,text\na.mp4,x\nb.mp4,y\n,z\n",
            "line 4: expected the name of a video as file_name, got ''",
        ),
        ("file_name,text\na.mp4,a dog, running\n", "line 2: has more cells than the header"),
        ('file_name,text\na.mp4,"a" dog\n', "can't be read as UTF-8 CSV"),
        ("file_name,text,start\na.mp4,x,0:30\n", "line 2: start is '0:30'; expected seconds >= 0"),
        ("file_name,text,end\na.mp4,x,nan\n", "line 2: end is 'nan'"),
        ("file_name,text,end\na.mp4,x,1e308\n", r"line 2: end is '1e308'; expected seconds >= 0 and <= 1e\+06"),
        (f"file_name,text,end\na.mp4,x,{'9' * 5000}\n", "line 2: end is '9{20,30}"),
        ("file_name,text\na.mp4,x\n,\n", "line 3: expected the name of a video as file_name, got ''"),
        (
            "file_name,text\n../../a.mp4,x\n",
            r"line 2: file_name is '\.\./\.\./a\.mp4', which .*allow it by source\.outside",
        ),
        ("file_name,text\n/etc/passwd,x\n", "line 2: file_name is '/etc/passwd', which lies outside of"),
        ("file_name,text,text\na.mp4,x,y\n", "has the column 'text' twice"),
        ("file_name,text,start,end\na.mp4,x,3,3\n", "line 2: start = 3 s is not before end = 3 s"),
    ],
)
def test_metadata_csv_mistakes(tmp_path: Path, content: str, message: str) -> None:
    _touch(tmp_path, "a.mp4")
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        read_folder(tmp_path)
    assert len(str(raised.value).splitlines()) == 1 and len(str(raised.value)) < 600
    assert str(raised.value).startswith(str(tmp_path / "metadata."))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"file_name": "a.mp4", "text": "x"}\n{"file_name"', r"metadata\.jsonl, line 2: is not JSON"),
        ('["a.mp4", "x"]', "line 1: expected an object"),
        (
            '{"file_name": "a.mp4", "label": "x"}',
            r"line 1: expected the key text \(or caption\), got file_name",
        ),
        ('{"file_name": 3, "text": "x"}', "line 1: expected the name of a video as file_name, got 3"),
        ('{"file_name": "a.mp4", "text": ["x"]}', "line 1: text is \\['x'\\]; expected a string"),
        ('{"file_name": "a.mp4", "text": "x", "start": -1}', "line 1: start is -1"),
        ('{"file_name": "a.mp4", "text": "x", "start": true}', "line 1: start is True; expected seconds"),
        ('{"file_name": "a.mp4", "text": "x", "start": [[]]}', r"line 1: start is \[\[\]\]; expected seconds"),
        ('{"file_name": "a.mp4", "text": "x", "end": 1e308}', r"line 1: end is 1e\+308; expected seconds"),
        (f'{{"file_name": "a.mp4", "text": "x", "end": 1{"0" * 4000}}}', "line 1: end is 1000"),
        (f'{{"file_name": "a.mp4", "text": "x", "end": {"9" * 5000}}}', "line 1: is not JSON .*5000 digits"),
        ("[" * 100_000, "line 1: is nested too deeply"),
        ('{"file_name": "a.mp4", "text": ' + "[" * 500 + "]" * 500 + "}", r"line 1: text is \[\[.*; expected a string"),
        ('\n{"file_name": "a.mp4", "text": "a \\ud800 b"}', r"line 2: text is 'a \\ud800 b', half of a surrogate"),
        ("3", "line 1: expected an object with file_name and text, got 3"),
        ("null", "line 1: expected an object with file_name and text, got None"),
    ],
)
def test_metadata_jsonl_mistakes(tmp_path: Path, content: str, message: str) -> None:
    _touch(tmp_path, "a.mp4")
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        read_folder(tmp_path)
    assert len(str(raised.value).splitlines()) == 1 and len(str(raised.value)) < 600
    assert str(raised.value).startswith(str(tmp_path / "metadata."))


def test_metadata_in_another_encoding(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4")
    (tmp_path / "metadata.csv").write_bytes("file_name,text\na.mp4,é\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"metadata\.csv, line 2: can't be read as UTF-8"):
        read_folder(tmp_path)


def test_rows_may_leave_the_folder_where_that_is_allowed(tmp_path: Path) -> None:
    _touch(tmp_path, "root/sub/b.mp4", "a.mp4")
    (tmp_path / "root/sub/metadata.csv").write_text(
        f"file_name,text\n../../a.mp4,relative\n{tmp_path}/a.mp4,absolute\n{tmp_path}/root/sub/b.mp4,inside\n"
    )
    with pytest.raises(InputError, match=r"line 2: file_name is '../../a.mp4'"):
        read_folder(tmp_path / "root")
    clips, _ = read_folder(tmp_path / "root", outside=True)
    assert [c.caption for c in clips] == ["relative", "absolute", "inside"]
    assert read(tmp_path / "root", SourceConfig(outside=True)).clips == clips


def test_an_absolute_path_inside_the_folder_is_one_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "root/a.mp4", "root/sub/b.mp4")
    (tmp_path / "root/a.txt").write_text("of the text file")
    (tmp_path / "root/sub/metadata.csv").write_text(f"file_name,text\n{tmp_path}/root/a.mp4,of the row\nb.mp4,b\n")
    monkeypatch.chdir(tmp_path)
    clips, skipped = read_folder("root")
    assert clips == [Clip(Path("root/a.mp4"), "of the row"), Clip(Path("root/sub/b.mp4"), "b")] and not skipped


def test_rows_without_their_file_are_left_out_and_named(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,x\nsub/b.mp4,y\n")
    clips, skipped = read_folder(tmp_path)
    assert clips == [Clip(tmp_path / "a.mp4", "x")]
    where = f"{tmp_path / 'metadata.csv'}, line 3"
    reason = f"no such file; {where} names it, relative to the metadata file"
    assert skipped == [Skipped(tmp_path / "sub/b.mp4", reason)]


@pytest.mark.parametrize("name", ["\ud800.mp4", "\0.mp4", "a" * 5000 + ".mp4"], ids=["surrogate", "null", "long"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "a"}))
    with pytest.raises(InputError, match=r"none of its 1 videos has a caption .*; 1 of them are not there") as raised:
        read_folder(tmp_path)
    assert len(str(raised.value).encode()) < 700
    _touch(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_text("a")
    _, skipped = read_folder(tmp_path)
    assert "no such file" in report_skipped(skipped) and report_skipped(skipped).encode()


ROWS = [{"file_name": "b.mp4", "prompt": 'a "dog",\nruns'}, {"file_name": "a.mp4", "caption": "a", "end": 2.0}]


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_metadata_in_other_forms(kind: str, tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "b.mp4")
    path = tmp_path / f"metadata.{kind}"
    if kind == "parquet":
        parquet.write_table(
            pyarrow.Table.from_pylist([{"caption": None, "end": None, "id": 3, **row} for row in ROWS]), path
        )
    else:
        path.write_text(json.dumps(ROWS) if kind == "json" else "\n".join(map(json.dumps, ROWS)))
    clips, skipped = read_folder(tmp_path)
    assert clips == [Clip(tmp_path / "a.mp4", "a", None, 2.0), Clip(tmp_path / "b.mp4", 'a "dog", runs')]
    assert not skipped


def test_other_forms_that_cant_be_read(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4")
    for name, content in (
        ("metadata.json", b'{"a": 1}'),
        ("metadata.json", b"[1]"),
        ("metadata.parquet", b"PAR1xPAR1"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: (expected a list of objects|not a readable parquet)"):
            read_folder(tmp_path)
        (tmp_path / name).unlink()


def test_what_video2dataset_leaves(tmp_path: Path) -> None:
    """As Panda-70M's downloader: a folder a shard, a caption and a record beside each clip, and its own tables."""
    _touch(tmp_path, "00000/0000000_00000.mp4", "00000/0000000_00001.mp4", "00000.parquet", "00000_stats.json")
    for number, caption in enumerate(("a dog,\nruns", 'a "cat"')):
        (tmp_path / f"00000/0000000_0000{number}.txt").write_text(caption)
        (tmp_path / f"00000/0000000_0000{number}.json").write_text(json.dumps({"caption": "other", "clips": [[0, 2]]}))
    found = read(tmp_path)
    assert found.format == "folder" and [clip.caption for clip in found.clips] == ["a dog, runs", 'a "cat"']
    assert all(clip.start is None and clip.end is None for clip in found.clips)  # cut already


def test_blank_lines_and_long_cells_of_a_csv(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "b.mp4")
    long = "word " * 40_000  # beyond the csv module's own limit
    (tmp_path / "metadata.csv").write_text(f"\n  \nfile_name,text\n\na.mp4,{long}\n   \n\nb.mp4,b\n\n")
    before = csv.field_size_limit()
    clips, skipped = read_folder(tmp_path)
    assert [c.caption for c in clips] == [long.strip(), "b"] and not skipped
    assert csv.field_size_limit() == before


@pytest.mark.fault("a caption or a metadata file is a pipe, a device, or of gigabytes", "it is named, and not read")
def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "a.txt").write_text("a dog")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to("/dev/zero")
    with (tmp_path / "d.txt").open("wb") as file:
        file.truncate(1 << 33)  # holds no block
    clips, skipped = read_folder(tmp_path)
    assert [clip.caption for clip in clips] == ["a dog"]
    assert [one.reason for one in skipped] == [
        "no caption: b.txt is no regular file; expected a text",
        "no caption: c.txt is no regular file; expected a text",
        "no caption: d.txt holds 8589934592 bytes; expected a caption, at most 16777216 bytes",
    ]
    (tmp_path / "metadata.jsonl").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"metadata\.jsonl: is no regular file"):
        read_folder(tmp_path)
