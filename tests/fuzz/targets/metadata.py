"""Captions of a folder of videos: metadata.csv, metadata.jsonl and texts beside the videos."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from pathlib import Path

from fuzzing import mutate

from contrastive_i2v.data.sources.folder import MAX_SECONDS, read_folder
from contrastive_i2v.errors import InputError

NAMES = ("a.mp4", "b c.webm", "d,e.mkv", 'f"g.mov')
FILES = (b"metadata.csv", b"metadata.jsonl", b"a.txt")
WORDS = tuple(
    word.encode()
    for word in (
        *NAMES, "file_name", "text", "caption", "start", "end", ",", '"', '""', "\n", "\r", "\r\n", "\0", "\ufeff",
        "\u2028", "[" * 3000, "[", "{", "]", "}", ":", "null", "true", "NaN", "-Infinity", "1e999", "9" * 5000, "-0",
        "\\ud800", "\\u0000", "../a.mp4", "/etc/passwd", "~", ".", "x" * 300, "\U0001f3ac", "1e-400", "0x10", "1_0",
        "\u0663",
    )
)  # fmt: skip
CAPTIONS = ("a dog", " two  words ", 'says "hi"', "a, b", "line\nbreak", "\u00e9\U0001f3ac", "null", "[1]", "#", "'")


class Target:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in NAMES:
            (folder / name).touch()  # no video is opened
        rows = [
            {"file_name": "a.mp4", "text": "a dog, running", "start": 0.5, "end": 2},
            {"file_name": NAMES[1], "text": ""},
        ]
        self.seeds = [
            b'file_name,text,start,end\na.mp4,"a dog, running",0.5,2\r\n"d,e.mkv","says ""hi""",,\n\nb c.webm,b,,3e0\n',
            "".join(json.dumps(row) + "\n" for row in rows).encode(),
            b"\xef\xbb\xbfa dog\nruns\n",
        ]

    def draw(self, rng: random.Random) -> bytes:
        """`rows` and what they hold, to be read back; or the name of a file and its content, changed."""
        if rng.random() < 0.2:
            rows = [
                [rng.choice(NAMES), rng.choice(CAPTIONS), rng.choice((None, 0, 0.25, 1e-9)), rng.choice((None, 1, 1e5))]
            ]
            return b"rows\0" + json.dumps(rows * rng.randrange(1, 3)).encode()
        kind = rng.randrange(3)
        return FILES[kind] + b"\0" + mutate(rng, self.seeds[kind], *self.seeds, words=WORDS)

    def check(self, case: bytes) -> None:
        kind, _, content = case.partition(b"\0")
        for file in FILES:
            (self.folder / file.decode()).unlink(missing_ok=True)
        if kind == b"rows":
            self._check_read_back(json.loads(content))
            return
        (self.folder / kind.decode()).write_bytes(content)
        try:
            clips, skipped = read_folder(self.folder)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, str(error)
            assert str(self.folder) in str(error), str(error)
            return
        assert clips
        for clip in clips:
            assert clip.path.is_file() and clip.path.parent == self.folder, clip
            assert clip.caption == " ".join(clip.caption.split()) != "", clip
            clip.caption.encode()
            for seconds in (clip.start, clip.end):
                assert seconds is None or (0 <= seconds <= MAX_SECONDS and math.isfinite(seconds)), clip
            assert clip.start is None or clip.end is None or clip.start < clip.end, clip
        assert all("\n" not in one.reason for one in skipped), skipped

    def _check_read_back(self, rows: list[list[object]]) -> None:
        expected = sorted((str(n), " ".join(str(text).split()), start, end) for n, text, start, end in rows)
        columns = ["file_name", "text", "start", "end"]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([columns, *rows])
        lines = "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        for name, content in (("metadata.csv", text.getvalue()), ("metadata.jsonl", lines)):
            (self.folder / name).write_bytes(content.encode())
            clips, _ = read_folder(self.folder)
            (self.folder / name).unlink()
            assert sorted((clip.path.name, clip.caption, clip.start, clip.end) for clip in clips) == expected, name
