"""What is wrong is one error that names it, and nobody's files are lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluating import NETWORKS, Colours, F, Pooled, changed, flicker, run, still
from torch import Tensor

from contrastive_i2v.data.types import NoClipLeft, Skipped
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.generators import finished_videos
from contrastive_i2v.evaluation.videos import ReferenceSet, read_reference_set


@pytest.mark.fault("a network finds NaN in a video", "an error that names both; what was good is kept")
def test_nan_features_name_the_video(reference: ReferenceSet, tmp_path: Path) -> None:
    class Broken(Colours):
        def __call__(self, frames: Tensor) -> Tensor:
            features = super().__call__(frames)
            return torch.where(torch.arange(len(features))[:, None] == 5, torch.nan, features)

    with pytest.raises(
        InputError, match=r"truth/00001\.mp4: 6 of the 24 features that image-colours-\w+ finds in it are NaN"
    ):
        run(reference, [changed("ours", flicker)], tmp_path, networks=replace(NETWORKS, image=Broken()))
    assert list((tmp_path / "features" / "truth").glob("*/image-colours-*/00000.safetensors"))  # what was good is kept


def test_what_a_network_cannot_take_names_the_videos(reference: ReferenceSet, tmp_path: Path) -> None:
    class Refuses(Pooled):
        def __call__(self, videos: Tensor) -> Tensor:
            raise ValueError("expected at least 9 frames")

    with pytest.raises(
        InputError, match=r"00000\.mp4, .*video-pooled-\w+ can't take a measure of them: expected at least 9"
    ):
        run(reference, [changed("ours", flicker)], tmp_path, networks=replace(NETWORKS, video=Refuses()))


@pytest.mark.fault("the disk is full while an evaluation writes", "one line; what is finished is not made again")
def test_a_full_disk_is_one_error_and_loses_nothing(
    reference: ReferenceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "00003" in path.name and "ours" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    calls: list[list[str]] = []
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"ours/.*/00003\.safetensors: could not be written \(No space left"):
        run(reference, [changed("ours", flicker, calls)], tmp_path)
    monkeypatch.undo()
    run(reference, [changed("ours", flicker, calls)], tmp_path)
    assert calls == [["00000", "00001", "00002", "00003"], ["00003"], ["00004", "00005"]]


def test_names_are_taken_once(reference: ReferenceSet, tmp_path: Path) -> None:
    for names in (("a", "a"), ("truth", "b")):
        with pytest.raises(InputError, match="is taken already; name them apart with NAME="):
            run(reference, [changed(name, still) for name in names], tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "a/b", "/tmp", "a\\b", "a\0", "x" * 201])
def test_a_name_is_a_plain_folder_name(name: str) -> None:
    with pytest.raises(InputError, match="method name .*: expected a plain folder name"):
        changed(name, still)


def test_a_name_does_not_lead_out_of_the_output(reference: ReferenceSet, tmp_path: Path) -> None:
    (tmp_path / "out" / "videos").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "00000.mp4").write_bytes(b"mine")
    (tmp_path / "out" / "videos" / "ours").symlink_to(tmp_path / "own")
    with pytest.raises(InputError, match="ours: leads to .*own, outside of .*out; expected a folder inside"):
        run(reference, [changed("ours", still)], tmp_path / "out")
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["00000.mp4"]


@pytest.mark.fault(
    "a user's own files lie among an evaluation's videos", "they survive; only videos listed in `.key` are ever removed"
)
@pytest.mark.parametrize("marker", [None, "0123456789abcdef", "[]", '{"key": "k", "files": ["../../mine.mp4"]}'])
def test_other_files_in_the_output_survive(reference: ReferenceSet, tmp_path: Path, marker: str | None) -> None:
    own = [tmp_path / "mine.mp4", *(tmp_path / "videos" / m / "mine.mp4" for m in ("ours", "truth", "other"))]
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
        if marker is not None:
            (path.parent / ".key").write_text(marker)
    for change in ("first", "second", "second", "first"):
        run(reference, [replace(changed("ours", still), identity={"change": change})], tmp_path)
    assert [path.read_bytes() for path in own] == [b"mine"] * 4
    assert len(list((tmp_path / "videos" / "ours").glob("*.mp4"))) == 7


@pytest.mark.fault("clips are left out of an evaluation", "`skipped.csv` in its output folder names all")
def test_clips_left_out_are_all_in_a_file(reference: ReferenceSet, tmp_path: Path) -> None:
    skipped = [Skipped(Path(f"{n}.mp4"), "too short") for n in range(5)]
    found = run(replace(reference, skipped=skipped), [changed("ours", still)], tmp_path)
    assert any("2.mp4: too short and 2 more, all of them in skipped.csv" in text for text in found.warnings)
    assert (tmp_path / "skipped.csv").read_text().splitlines()[1:] == [f"{n}.mp4,too short" for n in range(5)]


@pytest.mark.fault(
    "a true video opens and breaks later", "its clip is left out of every method, named and counted in the report"
)
def test_a_clip_that_breaks_later_is_left_out(
    reference: ReferenceSet, tmp_path: Path, break_later: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(reference.folder, tmp_path / "clips"))
    (tmp_path / "results").mkdir()
    for video in folder.glob("*.mp4"):
        shutil.copy(video, tmp_path / "results")
    for name in ("00001", "00004"):
        break_later(folder / f"{name}.mp4")
    broken = read_reference_set(folder, frames=F, resolution=16)
    assert len(broken.clips) == 6  # they do open
    finished, _ = finished_videos("finished", tmp_path / "results", broken)
    calls: list[list[str]] = []
    found = run(broken, [changed("ours", still, calls), finished], tmp_path / "out")
    names = ["00000", "00002", "00003", "00005"]
    assert sum(calls, []) == names and [[c.name for c in m.clips] for m in found.methods] == [names, names]
    assert any("2 clips left out of" in w and "00001.mp4: can't be decoded" in w for w in found.warnings)
    assert found.provenance["clips"] == "4"
    lines = (tmp_path / "out" / "skipped.csv").read_text().splitlines()
    assert [line.split(":")[0].split(",")[0] for line in lines[1:]] == [str(folder / f"0000{n}.mp4") for n in (1, 4)]

    for name in names:
        break_later(folder / f"{name}.mp4")
    with pytest.raises(NoClipLeft, match=r"clips: none of its 6 clips can be evaluated, the first: 00000\.mp4: can't"):
        run(read_reference_set(folder, frames=F, resolution=16), [changed("ours", still)], tmp_path / "out")
    assert len((tmp_path / "out" / "skipped.csv").read_text().splitlines()) == 7


@pytest.mark.fault("a user's own file lies where an evaluation writes", "it is refused before any work")
def test_a_file_in_a_videos_place_is_refused_before_any_work(reference: ReferenceSet, tmp_path: Path) -> None:
    own = tmp_path / "videos" / "ours" / "00003.mp4"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    calls: list[list[str]] = []
    with pytest.raises(InputError, match="00003.mp4: is there already and isn't listed in .*ours/.key.*move it away"):
        run(reference, [changed("ours", still, calls)], tmp_path)
    assert own.read_bytes() == b"mine"
    assert calls == []
