"""Files of datasets, in the forms that their authors and downloaders leave."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from contrastive_i2v.data.sources import Dataset

CAPTIONS = ('says "hi", twice', "a dog,\nruns", "é 🎬 plain")
"""With all that a list must quote."""
READ = tuple(" ".join(caption.split()) for caption in CAPTIONS)


def touch(root: Path, *names: str) -> None:
    """Files that no reader of lists opens."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path: Path, content: Any) -> Path:
    """A text, or else its JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def image_bytes(shade: int, size: tuple[int, int] = (24, 16)) -> bytes:
    """A PNG of (width, height) pixels of one grey."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(path: Path, seed: int, size: int = 16) -> Path:
    noise = torch.randint(256, (size, size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.numpy()).save(path, quality=95)
    return path


def write_pairs(root: Path, count: int, seeds: int = 1, size: int = 16) -> list[str]:
    """InstructPix2Pix's own folder of `count` prompts; their names."""
    names = [f"{number:07}" for number in range(count)]
    numbers = [str(1234 + number) for number in range(seeds)]
    for place, name in enumerate(names):
        prompt = {"input": "a lake", "edit": f'make it, "{place}"\n winter', "output": "a frozen lake"}
        write(root / name / "prompt.json", prompt)
        for number in numbers:
            for side in (0, 1):
                jpeg(root / name / f"{number}_{side}.jpg", 2 * (place * seeds + int(number)) + side, size)
    write(root / "seeds.json", [[name, numbers] for name in names])
    return names


def found(dataset: Dataset, root: Path) -> dict[str, str]:
    """Captions by the names of the clips' files below the root."""
    return {clip.where.relative_to(root).as_posix(): clip.caption for clip in dataset.clips}


def left_out(dataset: Dataset) -> list[str]:
    """Why, without where."""
    return [one.reason for one in dataset.skipped]
