"""`contrastive-i2v shapes`: write the generated clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from contrastive_i2v.data.shapes import ShapesConfig, make_shapes


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write captioned clips of moving shapes into OUTPUT/train and OUTPUT/test."""

    output: Path = Path("clips")
    """Folder that gets the clips."""
    shapes: tyro.conf.OmitArgPrefixes[ShapesConfig] = field(default_factory=ShapesConfig)


def run(arguments: Sequence[str]) -> None:
    """Parse the options and write the clips."""
    options = tyro.cli(Options, prog="contrastive-i2v shapes", args=arguments)
    make_shapes(options.output, options.shapes)
    print(f"clips: {options.output}/train, {options.output}/test")
