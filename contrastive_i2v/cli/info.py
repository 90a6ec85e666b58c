"""`contrastive-i2v info`: versions, devices, and what was built or why not; the first thing to put in a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import tyro

from contrastive_i2v import __version__
from contrastive_i2v.ops import available_backends, build_info

PACKAGES = ("torch", "triton", "diffusers", "transformers", "accelerate", "safetensors", "decord", "av", "tyro")


@dataclass(frozen=True)
class Options:
    """Print versions, devices, and what was built or why not."""


def run(arguments: Sequence[str]) -> None:
    """Print the report."""
    tyro.cli(Options, prog="contrastive-i2v info", args=arguments)
    rows = {"contrastive_i2v": __version__, "python": f"{platform.python_version()} on {platform.platform()}"}
    rows |= {name: _version(name) for name in PACKAGES}
    rows["cpu"] = (
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows["cuda devices"] = ", ".join(devices) or "none"
    rows |= {f"backend {name}": status for name, status in available_backends().items()}
    rows |= {f"build {name}": str(value) for name, value in build_info().items()}
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
