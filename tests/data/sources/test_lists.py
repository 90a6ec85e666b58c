"""WebVid, OpenVid-1M, InternVid, Panda-70M's CSV and two lists: rows that name files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from dataset_files import CAPTIONS, READ, found, left_out, touch, write

from contrastive_i2v.data.sources import SourceConfig, read
from contrastive_i2v.data.types import Clip, NoClipLeft
from contrastive_i2v.errors import InputError


def table(columns: str, rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([columns.split(","), *rows])
    return text.getvalue()


def webvid_row(video: str, page: str, name: str) -> list[object]:
    return [video, "https://a/b.mp4", "PT00H00M11S", page, name]


def write_webvid(path: Path, videos: Sequence[str], columns: str = "videoid,contentUrl,duration,page_dir,name") -> Path:
    rows = [webvid_row(video, "006001_006050", caption) for video, caption in zip(videos, CAPTIONS, strict=False)]
    return write(path, table(columns, rows))


def test_webvid_in_page_folders_by_split(tmp_path: Path) -> None:
    write_webvid(tmp_path / "results_2M_train.csv", ["021", "22", "23"])
    write_webvid(tmp_path / "results_2M_val.csv", ["31"])
    touch(tmp_path, "videos/006001_006050/021.mp4", "videos/22.mp4", "31.mp4")
    dataset = read(tmp_path)
    folder = "videos/006001_006050"
    assert (dataset.format, dataset.split) == ("webvid", "train")
    assert found(dataset, tmp_path) == {f"{folder}/021.mp4": READ[0], "videos/22.mp4": READ[1]}  # names, not numbers
    assert left_out(dataset) == ["no such file: 006001_006050/23.mp4"]
    assert str(dataset) == f"{tmp_path}: webvid, split train, 2 clips, 1 left out"
    for config, purpose in (
        (SourceConfig(split="val"), "train"),
        (SourceConfig(split="validation"), "train"),
        (None, "validation"),
    ):
        dataset = read(tmp_path, config, purpose=purpose)
        assert dataset.split == "val" and found(dataset, tmp_path) == {"31.mp4": READ[0]}
    with pytest.raises(InputError, match="has no split test; expected train or val"):
        read(tmp_path, SourceConfig(split="test"))


def test_webvid_columns_in_another_order_and_the_hubs_partitions(tmp_path: Path) -> None:
    columns = "page_idx,name,page_dir,videoid"
    for number, caption in enumerate(CAPTIONS):
        content = table(columns, [[0, caption, "1_50", number]])
        write(tmp_path / f"data/train/partitions/000{number}.csv", content)
    touch(tmp_path, "videos/1_50/0.mp4", "1.mp4", "2.mp4")
    expected = {"videos/1_50/0.mp4": READ[0], "1.mp4": READ[1], "2.mp4": READ[2]}
    assert found(read(tmp_path), tmp_path) == expected
    assert found(read(tmp_path / "data/train/partitions/0001.csv"), tmp_path) == {"1.mp4": READ[1]}


def test_videos_elsewhere_and_lists_that_must_be_chosen(tmp_path: Path) -> None:
    for size in ("2M", "10M"):
        write_webvid(tmp_path / f"lists/results_{size}_train.csv", ["1"])
    touch(tmp_path, "disk/006001_006050/1.mp4")
    with pytest.raises(InputError, match=r"holds 2 lists \(results_10M_train.csv, results_2M_train.csv\); give one"):
        read(tmp_path / "lists")
    dataset = read(tmp_path / "lists/results_2M_train.csv", SourceConfig(videos=tmp_path / "disk"))
    assert found(dataset, tmp_path / "disk") == {"006001_006050/1.mp4": READ[0]}
    with pytest.raises(InputError, match=r"source.videos: nowhere is no folder"):
        read(tmp_path / "lists/results_2M_train.csv", SourceConfig(videos=Path("nowhere")))


def test_names_in_a_list_never_lead_out_of_its_folder(tmp_path: Path) -> None:
    names = ["../secret", "x/../../secret", str(tmp_path / "secret"), "", ".", "\0"]
    rows = [webvid_row(name, "p", "caption") for name in names] + [webvid_row("a", "../../..", "b")]
    write(tmp_path / "set/results_2M_train.csv", table("videoid,contentUrl,duration,page_dir,name", rows))
    touch(tmp_path, "secret.mp4", "a.mp4", "set/videos/x/b.mp4")
    with pytest.raises(NoClipLeft) as raised:
        read(tmp_path / "set")
    assert len(raised.value.skipped) == len(rows)


def test_a_row_without_a_caption_or_cells(tmp_path: Path) -> None:
    write(tmp_path / "results_2M_val.csv", 'videoid,page_dir,name\n1,p," "\n2\n3,p,c\n')
    touch(tmp_path, "1.mp4", "2.mp4", "3.mp4")
    dataset = read(tmp_path)
    assert found(dataset, tmp_path) == {"3.mp4": "c"}
    assert left_out(dataset) == [f"no caption: results_2M_val.csv, line {line}" for line in (2, 3)]


def test_openvid(tmp_path: Path) -> None:
    columns = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds"
    rows = [[f"{n}.mp4", caption, 5.1, 3.2, 0.99, "static", 100, 24, 4.1] for n, caption in enumerate(CAPTIONS)]
    file = write(tmp_path / "data/train/OpenVid-1M.csv", table(columns, rows))
    touch(tmp_path, "video/0.mp4", "1.mp4")
    for path in (tmp_path, file):
        dataset = read(path)
        assert dataset.format == "openvid" and found(dataset, tmp_path) == {"video/0.mp4": READ[0], "1.mp4": READ[1]}
        assert left_out(dataset) == ["no such file: 2.mp4"]


def internvid_row(caption: str, **more: object) -> dict[str, object]:
    times = {"Start_timestamp": "00:00:07.000", "End_timestamp": "00:00:09.400"}
    return {"YoutubeID": "a_-b", **times, "Caption": caption, "UMT_Score": 0.41, "Aesthetic_Score": 4.5, **more}


def test_internvid_names_its_files_by_a_template(tmp_path: Path) -> None:
    rows = [
        internvid_row(CAPTIONS[0]),
        internvid_row(CAPTIONS[1], video_path="x/y.mp4"),
        internvid_row("z", YoutubeID="q"),
    ]
    write(tmp_path / "InternVid-10M-FLT.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    name = "a_-b_00:00:07.000_00:00:09.400.mp4"
    touch(tmp_path, f"videos/{name}", "x/y.mp4", "a_-b.mp4")
    dataset = read(tmp_path)
    assert dataset.format == "internvid"
    assert dataset.clips == [
        Clip(tmp_path / "videos" / name, READ[0]),  # cut already: no start, no end
        Clip(tmp_path / "x/y.mp4", READ[1]),
    ]
    assert left_out(dataset) == ["no such file: q_00:00:07.000_00:00:09.400.mp4"]
    dataset = read(tmp_path, SourceConfig(template="{YoutubeID}.mp4"))
    assert found(dataset, tmp_path) == {"a_-b.mp4": READ[0], "x/y.mp4": READ[1]}
    with pytest.raises(InputError, match="line 1: template {id}.mp4: not a row's keys"):
        read(tmp_path, SourceConfig(template="{id}.mp4"))


PANDA = "videoID,url,timestamp,caption,matching_score"


def test_panda_rows_hold_the_clips_of_a_whole_video(tmp_path: Path) -> None:
    spans = [["0:00:18.180", "0:00:25.760"], ["1:00:01.000", "1:00:02.500"]]
    url = "https://www.youtube.com/watch?v=--_x"
    rows = [
        ["--_x", url, spans, list(CAPTIONS[:2]), [0.44, 0.4]],
        ["gone", url, spans, list(CAPTIONS[:2]), [0.44, 0.4]],
        ["unequal", url, spans, ["one"], [0.44, 0.4]],
        ["code", url, "__import__('os').system('x')", ["one"], [0.44]],
        ["odd", url, [["0:00:02", "0:00:01"], "x", ["a", "b"], ["0:00:01", "0:00:02"], [1]], [*"abc", "", 3], [0.44]],
    ]
    write(tmp_path / "panda70m_training_2m.csv", table(PANDA, rows))
    touch(tmp_path, *(f"{name}.mp4" for name in ("--_x", "unequal", "code", "odd")))
    dataset = read(tmp_path)
    path = tmp_path / "--_x.mp4"
    assert dataset.format == "panda-70m" and dataset.split == "training"
    assert dataset.clips == [Clip(path, READ[0], 18.18, 25.76), Clip(path, READ[1], 3601.0, 3602.5)]
    assert [reason.split(":")[0] for reason in left_out(dataset)] == [
        "no such file",
        *["panda70m_training_2m.csv, line 4", "panda70m_training_2m.csv, line 5"],
        *["expected [start, end]"] * 3,
        *["no caption"] * 2,
    ]


def test_a_cell_beyond_the_csv_modules_limit(tmp_path: Path) -> None:
    count = 6000
    spans = [["0:00:01.000", "0:00:02.000"]] * count
    text = table(PANDA, [["a", "u", spans, [f"caption {n}" for n in range(count)], [0.1] * count]])
    write(tmp_path / "panda70m_validation.csv", text)
    touch(tmp_path, "a.mp4")
    before = csv.field_size_limit()
    assert max(map(len, text.split('"'))) > before
    dataset = read(tmp_path)
    assert dataset.split == "validation" and len(dataset.clips) == count and csv.field_size_limit() == before


def test_two_lists(tmp_path: Path) -> None:
    for videos, prompts in (("videos.txt", "prompt.txt"), ("video.txt", "captions.txt")):
        folder = tmp_path / videos
        write(folder / videos, "videos/a.mp4\r\nvideos/b.mp4\nc.mp4\nd.mp4\n\n")
        write(folder / prompts, 'says "hi", twice\n  two  words \nmissing\n \n'.rstrip(" \n") + "\n.\n")
        touch(folder, "videos/a.mp4", "videos/b.mp4", "d.mp4")
        dataset = read(folder)
        assert dataset.format == "two-lists"
        assert found(dataset, folder) == {"videos/a.mp4": READ[0], "videos/b.mp4": "two words", "d.mp4": "."}
        assert left_out(dataset) == ["no such file: c.mp4"]
        assert found(read(folder / videos), folder) == found(dataset, folder)


def test_two_lists_of_unequal_lengths(tmp_path: Path) -> None:
    write(tmp_path / "videos.txt", "a.mp4\nb.mp4\n")
    write(tmp_path / "prompts.txt", "one\n")
    touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(InputError, match="videos.txt has 2 lines and prompts.txt 1; expected a caption a video"):
        read(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b'videoid,page_dir,name\n1,p,"a" b\n', r"line 2: can't be read as CSV"),
        (b'videoid,page_dir,name\n1,p,"never closed\n', r"can't be read as CSV \(unexpected end of data"),
        (b"videoid,page_dir,name\n1,p,\xff\n", "can't be read as UTF-8"),
        (b"videoid,page_dir,name\n", "none of its 0 rows can be used"),
    ],
)
def test_lists_that_cant_be_read(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "results_2M_train.csv").write_bytes(content)
    touch(tmp_path, "1.mp4")
    with pytest.raises(InputError, match=message):
        read(tmp_path, SourceConfig(format="webvid"))
