"""`contrastive-i2v compare`: several methods on the same clips, and whether their differences are real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from contrastive_i2v.cli.evaluate import evaluate_methods
from contrastive_i2v.cli.evaluation_options import SuiteOptions
from contrastive_i2v.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(SuiteOptions):
    """Measure several methods on the same clips, with paired 95 % intervals of every difference.

    Each model is sampled at its own settings, those that `calibrate` chose for it, and where these differ also at
    common ones: NAME-common. The same command goes on where it was stopped, and another method is added to what is
    there.
    """

    methods: tuple[str, ...]
    """[NAME=]SPEC each: "tiny", a folder that train wrote, an InstructPix2Pix folder or hub id, a folder of another
    diffusers image-to-video pipeline, a folder of finished videos, "first-frame" or "retrieval"."""

    common: bool = True
    """Sample models at common settings as well, where their own differ: those of the first model before its
    calibration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.methods) < 2:
            raise InputError(f"methods: expected two or more, got {' '.join(self.methods) or 'none'}")


def run(arguments: Sequence[str]) -> None:
    """Parse the options, compare, and print the table and where the report is."""
    options = tyro.cli(Options, prog="contrastive-i2v compare", args=arguments)
    evaluate_methods(options, options.methods, command="compare", arguments=arguments, common=options.common)
