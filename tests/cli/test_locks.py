"""Two commands in one output folder: the second is refused, and nothing of the first is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contrastive_i2v.cli.main import main
from contrastive_i2v.errors import InputError
from contrastive_i2v.files import lock_folder, locked_folder

HOLD = """
import sys, time
from pathlib import Path
from contrastive_i2v.files import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, at work in `tmp_path / "out"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.fault(
    "a second evaluate, compare, demo, experiment, sample or interpolate starts in the same output folder",
    "it is refused with the other's process and start, and writes nothing",
)
@pytest.mark.parametrize(
    "command",
    [
        "evaluate --data CLIPS/test --method first-frame --baselines --resolution 16 --frames 3 IMAGE NONE",
        "compare --data CLIPS/test --methods a=first-frame b=first-frame --resolution 16 --frames 3 IMAGE NONE",
        "demo --model MODEL --resolution 16",
        "experiment --quick",
        "sample --model MODEL --image CLIPS/test/00000.mp4 --prompt right --frames 2 --steps 1",
        "interpolate --model MODEL --input CLIPS/test/00000.mp4",
    ],
)
def test_a_folder_in_use_is_refused(
    command: str,
    other: subprocess.Popen[str],
    pipeline_folder: Path,
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = command.replace("IMAGE NONE", "--image none --video none --flow none --latents none")
    command = command.replace("CLIPS", str(clips)).replace("MODEL", str(pipeline_folder))
    assert main([*command.split(), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"out: is in use by process {other.pid} since 20" in said and "give another --output" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_one_process_may_lock_a_folder_and_those_in_it_again(tmp_path: Path) -> None:
    """As demo and experiment do, which train and evaluate into their own folder."""
    with locked_folder(tmp_path), locked_folder(tmp_path / "runs"), locked_folder(tmp_path):
        pass
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:  # no lock outlives its block
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        process.kill()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file: can't be written \(File exists\); give another --output"):
        lock_folder(tmp_path / "file")


def test_a_file_system_without_locks_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert lock_folder(tmp_path) is None
