"""`contrastive-i2v random-model`: a tiny model with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import SYSTEMS
from contrastive_i2v.system import DESCRIPTION


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a tiny model with random weights, to try a family's training, sampling and evaluation on before its real
    weights are downloaded. Its videos are noise."""

    kind: str = "wan"
    """The family: wan or ltx-video."""
    output: Path
    """Folder of the model."""
    seed: int = 0
    """Of the weights."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options, make the model, and print where it is."""
    options = tyro.cli(Options, prog="contrastive-i2v random-model", args=arguments)
    if (options.output / DESCRIPTION).exists():
        raise InputError(f"--output {options.output}: holds a model already; give another folder, or delete that")
    if options.kind not in SYSTEMS:
        raise InputError(f"--kind {options.kind}: expected one of {', '.join(SYSTEMS)}")
    cls = SYSTEMS[options.kind]
    torch.manual_seed(options.seed)
    cls.random(cls.Config()).save(options.output)
    print(f"model: {options.output}")
