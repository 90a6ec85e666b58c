"""Tars are read in place: clips of video2dataset and of OpenVid-1M-wds, and hostile ones."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from dataset_files import CAPTIONS, READ, found, left_out
from encoding import write_noise

from contrastive_i2v.data.reading import hash_clip, probe_clip, read_clip, stamp_clip
from contrastive_i2v.data.sources import read
from contrastive_i2v.data.types import NoClipLeft
from contrastive_i2v.data.video import VideoError, probe, read_frames
from contrastive_i2v.files import file_hash


def write_tar(path: Path, *members: tuple[str, bytes | tarfile.TarInfo]) -> Path:
    """Members by name: their bytes, or a header."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name) if isinstance(content, bytes) else content
            if isinstance(content, bytes):
                header.size = len(content)
            archive.addfile(header, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[str, tarfile.TarInfo]:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return name, header


def test_clips_are_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [write_noise(tmp_path / f"{n}.mp4", frames=20, seed=n) for n in range(3)]
    content = [video.read_bytes() for video in videos]
    record = json.dumps({"caption": "not this one", "clips": [[0.0, 2.0]]}).encode()
    openvid = json.dumps({"video": "a.mp4", "caption": CAPTIONS[1], "aesthetic score": 5.1}).encode()
    root = tmp_path / "set, a:b"
    root.mkdir()
    write_tar(
        root / "00000.tar",
        ("000000000.mp4", content[0]),
        ("000000000.json", record),
        ("000000000.txt", CAPTIONS[0].encode()),
        ("sub.x/a.mp4", content[1]),
        ("sub.x/a.json", openvid),
    )
    write_tar(
        root / "00001.tar", ("000000000.txt", CAPTIONS[2].encode()), ("000000000.MP4", content[2]), ("b.mp4", b"x")
    )
    (root / "00000_stats.json").write_text("{}")
    dataset = read(root)
    assert dataset.format == "webdataset"
    expected = {
        "00000.tar/000000000.mp4": READ[0],
        "00000.tar/sub.x/a.mp4": READ[1],
        "00001.tar/000000000.MP4": READ[2],
    }
    assert found(dataset, root) == expected
    assert left_out(dataset) == ["no caption: no b.txt or .json beside it has one"]
    for clip, video in zip(dataset.clips, videos, strict=True):
        assert probe_clip(clip) == probe(video) and hash_clip(clip) == file_hash(video)
        assert torch.equal(read_clip(clip, [3, 0, 19]), read_frames(video, [3, 0, 19]))
    assert stamp_clip(dataset.clips[0]) != stamp_clip(dataset.clips[1])
    monkeypatch.setenv("CI2V_DECODER", "decord")
    assert torch.equal(read_clip(dataset.clips[1], [5]), read_frames(videos[1], [5]))
    assert list(found(read(root / "00001.tar"), root)) == ["00001.tar/000000000.MP4"]
    assert {file.name for file in tmp_path.rglob("*")} == {
        *(v.name for v in videos),
        root.name,
        "00000.tar",
        "00001.tar",
        "00000_stats.json",
    }


@pytest.mark.fault(
    "a tar holds links, devices, names that lead out of it", "nothing is unpacked or followed; each is named"
)
def test_hostile_members(tmp_path: Path) -> None:
    video = write_noise(tmp_path / "v.mp4", frames=20).read_bytes()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "set").mkdir()
    outside = str(tmp_path / "secret.txt")
    write_tar(
        tmp_path / "set/0.tar",
        ("../x.mp4", video),
        ("../x.txt", b"up"),
        (f"{tmp_path}/abs.mp4", video),
        (f"{tmp_path}/abs.txt", b"absolute"),
        link("link.mp4", str(tmp_path / "v.mp4")),
        ("link.txt", b"a"),
        ("stolen.mp4", video),
        link("stolen.txt", outside),
        link("hard.mp4", outside, tarfile.LNKTYPE),
        link("pipe.mp4", "", tarfile.FIFOTYPE),
        ("twice.mp4", video),
        ("twice.mp4", b"other"),
        ("twice.txt", b"\xff\xfe not UTF-8"),
        ("empty.mp4", b""),
        ("empty.txt", b"e"),
        ("junk.mp4", b"\x00" * 5000),
        ("junk.txt", b"j"),
        ("list.mp4", video),
        ("list.json", b"[" * 99999),
    )
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    dataset = read(tmp_path / "set")
    captions = {clip.part.name: clip.caption for clip in dataset.clips}  # type: ignore[union-attr]
    assert captions.pop("twice.mp4").endswith("not UTF-8")
    assert captions == {"../x.mp4": "up", f"{tmp_path}/abs.mp4": "absolute", "empty.mp4": "e", "junk.mp4": "j"}
    for clip in dataset.clips:
        assert clip.path == tmp_path / "set/0.tar"
        if clip.caption in ("e", "j"):
            with pytest.raises(VideoError, match=rf"0.tar/{clip.where.name}: can't be decoded"):
                probe_clip(clip)
        else:
            assert probe_clip(clip).frames == 20
    assert sorted(set(left_out(dataset))) == [
        "a second video of that name",
        "is no regular file",
        "no caption: no list.txt or .json beside it has one",
        "no caption: no stolen.txt or .json beside it has one",
    ]
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}


@pytest.mark.fault("a tar of clips is cut off", "what comes before is read, the rest is named")
def test_a_tar_that_is_cut_off_gives_what_comes_before(tmp_path: Path) -> None:
    video = write_noise(tmp_path / "v.mp4", frames=20).read_bytes()
    (tmp_path / "set").mkdir()
    path = write_tar(tmp_path / "set/0.tar", ("a.mp4", video), ("a.txt", b"a"), ("b.mp4", video), ("b.txt", b"b"))
    with tarfile.open(path) as archive:
        cut = archive.getmember("b.mp4").offset_data + len(video) // 2
    path.write_bytes(path.read_bytes()[:cut])
    dataset = read(tmp_path / "set")
    assert found(dataset, path) == {"a.mp4": "a"} and left_out(dataset)[-1].startswith(("damaged at", "not a readable"))
    (tmp_path / "set/1.tar").write_bytes(b"no tar" * 200)
    assert left_out(read(tmp_path / "set"))[-1].startswith("not a readable tar")
    path.unlink()
    with pytest.raises(NoClipLeft, match="not a readable tar"):
        read(tmp_path / "set")


@pytest.mark.fault("a tar's header says a negative size", "reading ends, and the tar is named")
def test_headers_that_lead_backwards_end(tmp_path: Path) -> None:
    """A negative size would lead to the same header for ever."""
    path = write_tar(tmp_path / "0.tar", ("a.txt", b"a" * 600), ("b.txt", b"b"))
    content = bytearray(path.read_bytes())
    header = tarfile.TarInfo.frombuf(bytes(content[:512]), "utf-8", "strict")
    header.size = -1024
    content[:512] = header.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(content)
    with pytest.raises(NoClipLeft, match="damaged at a.txt|not a readable tar"):
        read(path)
