"""What an evaluation ran on and with: versions, commit, device, and a hash of the data."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from contrastive_i2v import __version__
from contrastive_i2v.evaluation.videos import ReferenceSet
from contrastive_i2v.files import digest

PACKAGE = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Versions, device and commit."""
    found = {
        "contrastive_i2v": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
        "threads": str(torch.get_num_threads()),
    }
    return {name: value for name, value in found.items() if value}


def data(reference: ReferenceSet) -> dict[str, str]:
    """Which clips: folder, hash over files, captions and frame times, counts and sizes."""
    return {
        "data": str(reference.folder),
        "data hash": digest([[clip.name, clip.stamp] for clip in reference.clips]),
        "clips": str(len(reference.clips)),
        "skipped": str(len(reference.skipped)),
        **reference.setting,
    }


def commit() -> str:
    """The git commit of the package's own checkout, "-dirty" where its files differ from it; "" where it has none."""
    if not _git("ls-files", "--error-unmatch", "__init__.py"):
        return ""  # installed somewhere below another project's checkout
    changed = _git("status", "--porcelain", "--untracked-files=no", ".")
    return _git("rev-parse", "HEAD") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
