"""Datasets of every format: what `read` gives lies in the dataset's folder, or it says one line."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import pyarrow
from fuzzing import mutate
from pyarrow import parquet

from contrastive_i2v.data.reading import probe_clip
from contrastive_i2v.data.sources import SourceConfig, read
from contrastive_i2v.data.types import Images, TarMember
from contrastive_i2v.data.video import VideoError
from contrastive_i2v.errors import InputError

VIDEOS = ("a.mp4", "videos/p/a.mp4", "video/a.mp4", "TrainValVideo/a.mp4")
WORDS = tuple(
    word.encode()
    for word in (
        "a", "a.mp4", "../secret", "../secret.mp4", "/etc/passwd", "..", "\0", "\\u0000", "\\ud800", '"', '""', "'",
        "\n", "\r", "[" * 3000, "[", "]", "{", "}", ":", ",", "null", "3", "NaN", "9" * 5000, "-" * 500, "0:00:01",
        "x" * 300, "video_id", "caption", "split", "train", "path", "video_directory", "__import__('os')",
        "\ufeff",
    )
)  # fmt: skip


def _tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in (
            ("a.mp4", b"video" * 200),
            ("a.txt", b"a dog"),
            ("sub/b.mp4", b"video"),
            ("sub/b.json", b'{"caption": "b"}'),
        ):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
        link = tarfile.TarInfo("c.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return content.getvalue()


def _parquet() -> bytes:
    image = {"bytes": b"image", "path": "a"}
    content = io.BytesIO()
    rows = [{"input_image": image, "edit_prompt": f"make it {n}", "edited_image": image} for n in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), content, row_group_size=2)
    return content.getvalue()


class Target:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "secret.mp4").touch()
        msrvtt = {
            "videos": [{"video_id": "a", "split": "train", "id": 0}],
            "sentences": [{"video_id": "a", "caption": "a dog"}, {"video_id": "a", "caption": 'a "cat"'}],
        }
        hub = [{"video_id": "a", "video": "a.mp4", "caption": ["a dog", "b"]}]
        internvid = {
            "YoutubeID": "a",
            "Start_timestamp": "0",
            "End_timestamp": "1",
            "Caption": "c",
            "video_path": "a.mp4",
        }
        self.seeds = {
            "results_2M_train.csv": b'videoid,duration,page_dir,name\na,PT,p,"a dog, ""x"""\n../secret,PT,..,x\n',
            "OpenVid-1M.csv": b"video,caption,aesthetic score\na.mp4,a dog,5.1\n../secret.mp4,b,1\n",
            "panda70m_training_2m.csv": b"""videoID,timestamp,caption\na,"[['0:00:01.5', '0:00:02']]","['a dog']"\n""",
            "InternVid-10M-FLT.jsonl": json.dumps(internvid).encode() + b"\n",
            "MSRVTT_data.json": json.dumps(msrvtt).encode(),
            "msrvtt_train_9k.json": json.dumps(hub).encode(),
            "MSRVTT_JSFUSION_test.csv": b"key,vid_key,video_id,sentence\nret0,msr0,a,a dog\n",
            "seeds.json": json.dumps([["p", ["1", "2"]], ["../x", ["1"]]] * 3).encode(),
            "dataset.toml": b'[general]\ncaption_extension = ".txt"\n[[datasets]]\nvideo_directory = "videos/p"\n',
            "pipe.toml": b'[[directory]]\npath = "videos/p"\n',
            "metadata.json": b'[{"file_name": "a.mp4", "caption": "a dog", "start": 1}]',
            "videos.txt": b"a.mp4\nvideos/p/a.mp4\n../secret.mp4\n",
            "0.tar": _tar(),
            "train.parquet": _parquet(),
        }  # fmt: skip

    def draw(self, rng: random.Random) -> bytes:
        """The name of a list, and its content, changed."""
        name = rng.choice(list(self.seeds))
        return name.encode() + b"\0" + mutate(rng, self.seeds[name], *self.seeds.values(), words=WORDS)

    def check(self, case: bytes) -> None:
        name, _, content = case.partition(b"\0")
        root = self.folder / "set"
        shutil.rmtree(root, ignore_errors=True)
        for video in (*VIDEOS, "p/1_0.jpg", "p/1_1.jpg"):
            (root / video).parent.mkdir(parents=True, exist_ok=True)
            (root / video).touch()
        (root / "p/prompt.json").write_text('{"edit": "make it snow"}')
        if name == b"videos.txt":
            (root / "prompts.txt").write_text("a\nb\nc\n")
        (root / "videos/p/a.txt").write_text("a dog")
        path = root / name.decode()
        path.write_bytes(content)
        before = sorted(self.folder.rglob("*"))
        for of, config in ((root, None), (path, SourceConfig(captions="random"))):
            self._check_found(root, of, config, toml=path.suffix == ".toml")
        assert sorted(self.folder.rglob("*")) == before, "a reader wrote"

    def _check_found(self, root: Path, path: Path, config: SourceConfig | None, *, toml: bool) -> None:
        try:
            dataset = read(path, config)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 4000, str(error)
            str(error).encode()
            return
        assert dataset.clips
        str(dataset).encode()
        for clip in dataset.clips:
            assert clip.caption == " ".join(clip.caption.split()), clip
            assert clip.caption or toml, clip
            clip.caption.encode()
            assert clip.start is None or clip.end is None or 0 <= clip.start < clip.end, clip
            assert toml or (clip.path.exists() and ".." not in clip.path.parts and clip.path.is_relative_to(root)), clip
            if isinstance(clip.part, Images):
                assert toml or all((clip.path / name).is_file() and "/" not in name for name in clip.part.names), clip
            if isinstance(clip.part, TarMember):
                assert 0 < clip.part.offset <= clip.part.offset + clip.part.size <= clip.path.stat().st_size, clip
            with contextlib.suppress(VideoError):
                probe_clip(clip)
