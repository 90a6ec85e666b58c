"""What a measurement was made on: device, versions, commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from benchmarks.peers import PEERS
from contrastive_i2v.ops import build_info

ROOT = Path(__file__).resolve().parent.parent
FALLBACK_CACHE_BYTES = 64 << 20
"""Where the system tells nothing."""


def device_name(device: str) -> str:
    """The name of the GPU or of the processor, with the number of threads that torch uses and what holds it back."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    held = os.environ.get("ONEDNN_MAX_CPU_ISA")
    limits = f"{torch.get_num_threads()} threads" + (f", held to {held}" if held else "")
    return f"{models[0] if models else platform.processor()} ({limits})"


def slug(name: str) -> str:
    """Letters, digits and dashes, for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(r\)|\(tm\)", "", name.lower())).strip("-")


def cache_bytes(device: str) -> int:
    """Size of the last-level cache."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(path.read_text().strip().removesuffix("K")) << 10 for path in sizes), default=FALLBACK_CACHE_BYTES)


def versions() -> dict[str, str]:
    """Python, torch, CUDA, and of the packages that take part those that are installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda or ""}
    for name in ("triton", "diffusers", *(peer.package.split("==")[0] for peer in PEERS)):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {name: version for name, version in found.items() if version}


def commit() -> str:
    """The commit checked out, with a + where files differ from it; "" where git can't tell."""
    try:
        head, status = (
            subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + "+" * bool(status)


def describe(device: str) -> dict[str, object]:
    """Everything above, for a results file."""
    return {
        "device": {"type": device, "name": device_name(device), "cache_bytes": cache_bytes(device)},
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "extension": build_info(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
