"""setup.py's decisions, without building: what is built when, and the one line that says why not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import contrastive_i2v

SETUP = Path(__file__).resolve().parents[1] / "setup.py"

pytestmark = pytest.mark.skipif(not SETUP.exists(), reason="needs the source tree")


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("CI2V_BUILD_EXT", "CI2V_BUILD_CUDA", "CXX", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("ci2v_setup", SETUP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_version_is_the_packages(setup_py: ModuleType) -> None:
    assert setup_py.read_version() == contrastive_i2v.__version__


@pytest.mark.parametrize("value", ["auto", "0", "1"])
def test_switch(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert setup_py.read_switch("CI2V_BUILD_EXT") == "auto"
    monkeypatch.setenv("CI2V_BUILD_EXT", value)
    assert setup_py.read_switch("CI2V_BUILD_EXT") == value


def test_a_wrong_switch_is_refused(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI2V_BUILD_EXT", "yes")
    with pytest.raises(setup_py.BuildRefused, match="CI2V_BUILD_EXT is 'yes': expected auto, 0 or 1"):
        setup_py.read_switch("CI2V_BUILD_EXT")
    with pytest.raises(SystemExit, match="contrastive_i2v: CI2V_BUILD_EXT is 'yes'"):
        setup_py.main()


@pytest.mark.parametrize(("switch", "built"), [("auto", True), ("0", False), ("1", True)])
def test_decision_when_nothing_is_missing(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any, switch: str, built: bool
) -> None:
    monkeypatch.setenv("CI2V_BUILD_EXT", switch)
    assert setup_py.decide("CI2V_BUILD_EXT", "C++ extension", "", "instead") is built
    assert capsys.readouterr().err == ""


def test_auto_degrades_with_one_line_and_1_fails(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ask = (
        "CI2V_BUILD_EXT",
        "C++ extension",
        "there is no C++ compiler",
        "The PyTorch reference runs instead",
    )
    assert setup_py.decide(*ask) is False
    line = "contrastive_i2v: no C++ extension: there is no C++ compiler. The PyTorch reference runs instead\n"
    assert capsys.readouterr().err == line
    monkeypatch.setenv("CI2V_BUILD_EXT", "1")
    with pytest.raises(setup_py.BuildRefused, match="CI2V_BUILD_EXT=1, but there is no C\\+\\+ compiler"):
        setup_py.decide(*ask)
    monkeypatch.setenv("CI2V_BUILD_EXT", "0")
    assert setup_py.decide(*ask) is False
    assert capsys.readouterr().err == ""


def test_what_the_extension_lacks(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"c++", "cmake", "ninja"}
    monkeypatch.setattr(setup_py.shutil, "which", lambda name: name if name in found else None)
    assert setup_py.why_no_extension() == ""
    found.discard("ninja")
    assert setup_py.why_no_extension() == "ninja not found; pip install ninja"
    found.discard("c++")
    assert setup_py.why_no_extension().startswith("there is no C++ compiler")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert setup_py.why_no_extension().startswith("torch cannot be imported")


def test_what_the_cuda_build_lacks(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toolkit = ["nvcc"]
    monkeypatch.setattr(setup_py.shutil, "which", lambda name: name if name in toolkit else None)
    monkeypatch.setattr(setup_py, "ROOT", tmp_path)

    def torch_of(cuda: str | None) -> None:
        # No `cuda` attribute: asking whether a GPU is present would fail here.
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(version=SimpleNamespace(cuda=cuda)))

    torch_of(None)
    assert setup_py.why_no_cuda() == "this torch is a CPU build, though a CUDA toolkit is present"
    torch_of("13.0")
    assert setup_py.why_no_cuda() == "this version has no CUDA kernels"
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "op.cu").touch()
    assert setup_py.why_no_cuda() == ""
    toolkit.clear()
    assert setup_py.why_no_cuda() == "there is no CUDA toolkit (nvcc or $CUDACXX)"


def test_a_failed_compile_degrades_in_auto_and_fails_in_1(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    from setuptools import Distribution, Extension

    monkeypatch.setattr(setup_py, "why_no_extension", lambda: "")
    monkeypatch.setattr(setup_py, "why_no_cuda", lambda: "this torch is a CPU build")
    command = setup_py.CMakeBuild(Distribution({"name": "contrastive_i2v"}))
    command.build_temp, command.build_lib = str(tmp_path / "temp"), str(tmp_path / "lib")

    def fail(arguments: list[str], check: bool) -> None:
        raise setup_py.subprocess.CalledProcessError(1, arguments)

    monkeypatch.setattr(setup_py.subprocess, "run", fail)
    command.build_extension(Extension("contrastive_i2v._C", sources=[]))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("contrastive_i2v: no CUDA kernels: this torch is a CPU build")
    assert lines[1].startswith("contrastive_i2v: no C++ extension: cmake failed, see above")
    assert len(lines) == 2
    monkeypatch.setenv("CI2V_BUILD_EXT", "1")
    with pytest.raises(setup_py.BuildRefused, match="cmake failed"):
        command.build_extension(Extension("contrastive_i2v._C", sources=[]))
