"""`contrastive-i2v evaluate`: every metric of one method's videos, with intervals, in a report worth looking at."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import tyro

from contrastive_i2v.cli.evaluation_options import SuiteOptions
from contrastive_i2v.cli.evaluation_table import format_table
from contrastive_i2v.evaluation.suite import evaluate

PIXELS_AT_ONCE = 64 * 64**2
"""Of one frame of each video in a batch: larger batches are faster, and more is lost when one is interrupted."""


@dataclass(frozen=True, kw_only=True)
class Options(SuiteOptions):
    """Measure a method's videos of held-out clips: FID, KID, FVD, CLIP scores, consistency, motion, fidelity, latents.

    The same command goes on where it was stopped. Look at OUTPUT/report.html; the numbers are in OUTPUT/report.json.
    """

    method: str = "tiny"
    """[NAME=]SPEC: "tiny", a folder that train wrote, an InstructPix2Pix folder or hub id, a folder of another
    diffusers image-to-video pipeline, or a folder of finished videos named like the clips."""
    lora: tuple[str, ...] = ()
    """Adapters of that model, PATH or PATH=WEIGHT each, added to its weights; compare takes them with a model's name,
    as NAME=MODEL?lora=PATH=WEIGHT."""
    baselines: tuple[Literal["first-frame", "retrieval"], ...] = ("first-frame",)
    """What to read it beside: the first frame repeated; the training clip with the nearest caption (--train-data)."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options, evaluate, and print the table and where the report is."""
    options = tyro.cli(Options, prog="contrastive-i2v evaluate", args=arguments)
    method = options.method
    if options.lora:
        from contrastive_i2v.cli.evaluation_methods import split_name  # takes seconds
        from contrastive_i2v.models.loading import with_adapters

        name, spec = split_name(method)
        method = f"{name}={with_adapters(spec, options.lora)}"
    evaluate_methods(options, (method, *options.baselines), command="evaluate", arguments=arguments)


def evaluate_methods(
    options: SuiteOptions, specs: Sequence[str], *, command: str, arguments: Sequence[str], common: bool = False
) -> None:
    """What evaluate and compare share; `common` adds models at common settings where their own differ."""
    from contrastive_i2v.cli.evaluation_methods import (  # takes seconds
        build_method,
        build_networks,
        common_settings,
        load_reference,
    )

    reference = load_reference(options, specs)
    warnings: list[str] = []
    methods = [build_method(spec, options, reference, warnings) for spec in specs]
    if common and (settings := common_settings(options, specs, warnings)):
        for method in [build_method(spec, settings, reference, warnings) for spec in specs]:
            if method.kind == "checkpoint":
                methods.append(replace(method, name=f"{method.name}-common"))
    networks, about = build_networks(options, specs)
    report = evaluate(
        reference,
        methods,
        networks,
        options.output,
        title=f"{_named([method.name for method in methods])} on {reference.folder.name}",
        command=shlex.join(["contrastive-i2v", command, *arguments]),
        batch_size=options.batch_size or max(1, PIXELS_AT_ONCE // math.prod(reference.size)),
        about=about,
        warnings=warnings,
    )
    print("\n".join(["", *format_table(report), "", f"report: {options.output / 'report.html'}"]))


def _named(methods: Sequence[str]) -> str:
    return " against ".join(methods) if len(methods) <= 3 else f"{len(methods)} methods"
