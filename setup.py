"""Builds the optional C++ extension `contrastive_i2v._C` by driving CMake and Ninja.

One `Extension` without sources stands for everything CMake makes: setuptools decides where the file goes (a
wheel, or the source tree for an editable install), CMake decides how to build it.

CI2V_BUILD_EXT=auto|0|1     auto builds the extension if it can, else says why not in one line; 1 fails
CI2V_BUILD_CUDA=auto|0|1    the same for the CUDA kernels; whether a GPU is present is never asked
CMAKE_CUDA_ARCHITECTURES    which GPUs to build for, such as "80;90"
CMAKE_BUILD_PARALLEL_LEVEL  how many compilers run at once, 2 by default
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class BuildRefused(Exception):
    """Why something that was asked for cannot be built."""


def read_switch(name: str) -> str:
    """`auto`, `0` or `1` from the environment."""
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise BuildRefused(f"{name} is {value!r}: expected auto, 0 or 1")
    return value


def read_version() -> str:
    """`__version__`, without importing the package."""
    text = (ROOT / "contrastive_i2v" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert found is not None
    return found.group(1)


def why_no_extension() -> str:
    """What the C++ build lacks; "" when it has all."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return f"torch cannot be imported ({error}); try --no-build-isolation"
    if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        return "there is no C++ compiler (c++, g++, clang++ or $CXX)"
    missing = [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} not found; pip install {' '.join(missing)}" if missing else ""


def why_no_cuda() -> str:
    """What the CUDA build lacks; "" when it has all. Looks for a toolkit, never for a GPU."""
    import torch

    has_toolkit = shutil.which(os.environ.get("CUDACXX", "nvcc")) is not None
    if torch.version.cuda is None:
        return "this torch is a CPU build" + (", though a CUDA toolkit is present" if has_toolkit else "")
    if not any((ROOT / "csrc" / "cuda").glob("*.cu")):
        return "this version has no CUDA kernels"
    return "" if has_toolkit else "there is no CUDA toolkit (nvcc or $CUDACXX)"


def decide(name: str, what: str, why_not: str, instead: str) -> bool:
    """Whether to build `what`. `auto` prints one line when it cannot be; `1` raises."""
    switch = read_switch(name)
    if switch == "0":
        return False
    if why_not and switch == "1":
        raise BuildRefused(f"{name}=1, but {why_not}")
    if why_not:
        print(f"contrastive_i2v: no {what}: {why_not}. {instead}", file=sys.stderr)
    return not why_not


class CMakeBuild(build_ext):
    """Configures and builds once; setuptools does the rest."""

    def build_extension(self, ext: Extension) -> None:
        if not decide("CI2V_BUILD_EXT", "C++ extension", why_no_extension(), "The PyTorch reference runs instead"):
            return
        cuda = decide("CI2V_BUILD_CUDA", "CUDA kernels", why_no_cuda(), "Building for the CPU only")
        try:
            self.run_cmake(Path(self.get_ext_fullpath(ext.name)).resolve().parent, cuda)
        except subprocess.CalledProcessError as error:
            decide(
                "CI2V_BUILD_EXT",
                "C++ extension",
                f"{error.cmd[0]} failed, see above",
                "The reference runs instead",
            )

    def run_cmake(self, output: Path, cuda: bool) -> None:
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DCI2V_VERSION={read_version()}",
            f"-DCI2V_CUDA={'ON' if cuda else 'OFF'}",
        ]  # fmt: skip
        architectures = os.environ.get("CMAKE_CUDA_ARCHITECTURES")
        if cuda and architectures:
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={architectures}")
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "2")
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)


def main() -> None:
    try:
        wanted = read_switch("CI2V_BUILD_EXT") != "0"
        setup(
            version=read_version(),
            packages=[
                *find_packages(include=["contrastive_i2v", "contrastive_i2v.*"]),
                "contrastive_i2v.kernels",
            ],
            package_dir={"contrastive_i2v.kernels": "kernels"},
            package_data={
                "contrastive_i2v": [
                    "py.typed",
                    "models/tiny/*",
                    "models/tiny/**/*",
                    "evaluation/*/page/*",
                    "evaluation/extractors/shapes/*",
                ]
            },
            # optional: setuptools carries on when there is no file
            ext_modules=[Extension("contrastive_i2v._C", sources=[], optional=True)] if wanted else [],
            cmdclass={"build_ext": CMakeBuild},
            zip_safe=False,
        )
    except BuildRefused as error:
        sys.exit(f"contrastive_i2v: {error}")


if __name__ == "__main__":
    main()
