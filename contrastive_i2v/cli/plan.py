"""`contrastive-i2v plan`: what a training needs before anything of it runs, and what makes it fit."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch

from contrastive_i2v.cli.train import read_configs
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.system import System, default_device
from contrastive_i2v.training.config import TrainConfig
from contrastive_i2v.training.plan import (
    RESERVED,
    Device,
    Needs,
    Planner,
    cache_bytes,
    precision_on,
    seconds_a_step,
)
from contrastive_i2v.training.precision import resolved
from contrastive_i2v.training.recipes import RECIPES

GB = 1e9

DESCRIPTION = f"""Print what a training needs, before anything of it runs: memory, disk, and with --probe time. The
options are those of train, and these. The model's folder needs its configs alone, no weights.

--recipe NAME   start from one of
{textwrap.indent(textwrap.fill(", ".join(RECIPES), 100), " " * 16)}
--config FILE   start from an earlier run's config.yaml
--gigabytes N   also print the smallest changes that make it fit in N GB (default: the memory of the GPU here, if any)
--device NAME   cuda or cpu: what it is to run on (default: what is here)
--processes N   that share the batches (default: 1)
--probe STEPS   take the time of as many real steps, which needs the weights, and the memory
"""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and print the plan."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--config", type=Path)
    first.add_argument("--gigabytes")
    first.add_argument("--device")
    first.add_argument("--processes", default="1")
    first.add_argument("--probe", default="0")
    own, rest = first.parse_known_args(list(arguments))
    configs = read_configs(own.recipe, own.config, rest, prog="plan", description=DESCRIPTION)
    here = default_device().type
    if own.device not in (None, *RESERVED):
        raise InputError(f"--device {own.device}: expected one of {', '.join(RESERVED)}")
    device: Device = own.device or ("cuda" if here == "cuda" else "cpu")
    limit, probed = _number("--gigabytes", own.gigabytes), _number("--probe", own.probe)
    if own.gigabytes is None and device == here == "cuda":
        limit = torch.cuda.get_device_properties(0).total_memory / GB
    if probed and device != here:
        raise InputError(f"--probe: takes the time here, on {here}; expected --device {here}, or no --probe")
    if not (processes := _number("--processes", own.processes)):
        raise InputError("--processes: expected at least 1, got 0")
    planner = Planner(device, processes=math.ceil(processes))
    for number, config in enumerate(configs):
        if len(configs) > 1:
            print(f"\n{config.output}")
        if number and not Path(config.model).exists():
            print(f"starts from {config.model}, which isn't trained yet: plan it then")
            continue
        print(format_needs(planner.needs(config), config, device))
        print(_cache(config, planner))
        if probed:
            seconds = _probe(config, math.ceil(probed))
            print(f"{'time':<28}{_time(seconds * config.steps):>10}  {seconds:.3g} s a step, {config.steps} steps")
        if limit:
            print(_advice(planner, config, limit))


def format_needs(needs: Needs, config: TrainConfig, device: Device) -> str:
    """The table."""
    rows: list[tuple[str, int | None, str]] = [
        ("weights", needs.weights, f"{needs.parameters:,} parameters, {needs.trained:,} trained{_kept(config)}"),
        (
            "autoencoder, text encoder",
            needs.frozen,
            f"{_size(needs.encoders)} while they encode, before the network comes"
            + ", a layer at a time" * (config.offload_encoders and device == "cuda"),
        ),
        ("AdamW's moments", needs.optimizer, "8-bit" if config.optimizer.eight_bit else "float32"),
        ("moving average", needs.average, _average(needs, config)),
        ("memory bank", needs.banks, f"{config.loss.memory_bank} latents" if needs.banks else "none"),
        ("gradients and activations", needs.step, "the most of a step, less than the sum of"),
        ("  gradients", needs.gradients, "float32"),
        *([("exchanged gradients", needs.buckets, "copies that the processes send")] * bool(needs.buckets)),
        ("  kept by a forward pass", needs.kept, _activations(needs, config)),
        ("peak", needs.total, f"on {device}, and about {RESERVED[device] / GB:g} GB for what isn't tensors"),
    ]
    if needs.reference:
        rows.insert(1, ("reference of own samples", needs.reference, "float32"))
    if needs.offloaded:
        rows.append(
            ("in the host's memory", needs.offloaded, "offloaded weights, the autoencoder and the text encoder")
        )
    lines = [f"{name:<28}{_size(value or 0):>10}  {about}" for name, value, about in rows]
    batches = f"batches of {config.batch_size} x {config.gradient_accumulation}"
    lines.insert(0, f"{config.model}: {batches}, mixed precision {precision_on(device, config)}")
    if left := _not_counted(config):
        lines.append(f"not counted: {', '.join(left)}")
    return "\n".join(lines)


def _kept(config: TrainConfig) -> str:
    dtype = "" if config.lora.base_dtype == "float32" else f", blocks' frozen weights in {config.lora.base_dtype}"
    return dtype + ", one block's on the GPU" * config.offload_blocks


def _average(needs: Needs, config: TrainConfig) -> str:
    if needs.host:
        return f"{_size(needs.host)} in the host's memory"
    return "float32" if config.ema_decay else "none"


def _activations(needs: Needs, config: TrainConfig) -> str:
    if config.gradient_checkpointing:
        return "gradient checkpointing"
    return f"autocast's copies of weights, {_size(needs.copies)}, included" if needs.copies else "float32"


def _not_counted(config: TrainConfig) -> list[str]:
    """Parts of a training whose memory isn't in the table."""
    loss = config.loss
    return [
        name
        for name, there in {
            "rollouts of own samples": config.own_samples.on,
            "what own_weight computes": loss.own_weight,
            "the encoder of alignment_weight": loss.alignment_weight,
            "the layer of text_weight": loss.text_weight,
            "what torch.compile saves": config.compile,
        }.items()
        if there
    ]


def _cache(config: TrainConfig, planner: Planner) -> str:
    if config.data.shards is not None:
        return f"{'cache on disk':<28}{'0':>10}  latents come from {config.data.shards}"
    try:
        clips, size = cache_bytes(config, planner.build(config))
    except InputError as error:
        return f"{'cache on disk':<28}{'?':>10}  {error}"
    return f"{'cache on disk':<28}{_size(size):>10}  {clips} clips in {config.data.path}"


def _probe(config: TrainConfig, steps: int) -> float:
    device = default_device()
    system: System = load_system(config.model, config.system, device="cpu")
    return seconds_a_step(resolved(config, device), system, steps, device)


def _advice(planner: Planner, config: TrainConfig, limit: float) -> str:
    room = limit * GB - RESERVED[planner.device]
    if planner.needs(config).total <= room:
        return f"\nfits in {limit:g} GB as it is"
    changes, fits = planner.fitting(config, room)
    lines = [f"  {change.options:<66}{_size(needs.total):>10}" for change, needs in changes]
    if fits:
        return "\n".join([f"\nfits in {limit:g} GB with", *lines])
    return "\n".join([f"\nnothing makes it fit in {limit:g} GB; the least it can need:", *lines])


def _size(value: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:g} B"


def _time(seconds: float) -> str:
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


def _number(option: str, text: str | None) -> float | None:
    """Raises InputError for what is no number, or below 0."""
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value < float("inf"):
        raise InputError(f"{option}: expected a number, 0 or more, got {text!r}")
    return value
