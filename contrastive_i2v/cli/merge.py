"""`contrastive-i2v merge`: a model with its adapters becomes a whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system, read_description
from contrastive_i2v.models.loading import locate, split_options, with_adapters
from contrastive_i2v.system import DESCRIPTION


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a model with adapters (LoRA) merged into its weights: a folder as full fine-tuning writes it."""

    model: str
    """A folder that training with --lora.rank wrote; or any model, with --lora."""
    lora: tuple[str, ...] = ()
    """Adapters of that model, PATH or PATH=WEIGHT each, added to its weights."""
    output: Path
    """Folder of the whole model."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options, merge, and print where the model is."""
    options = tyro.cli(Options, prog="contrastive-i2v merge", args=arguments)
    name = with_adapters(options.model, options.lora)
    source, given = split_options(name)
    if "lora" not in given and not ((said := read_description(locate(source))) and said.adapter):
        raise InputError(f"--model {options.model}: has no adapter to merge; expected one, or --lora PATH")
    if (options.output / DESCRIPTION).exists():
        raise InputError(f"--output {options.output}: holds a model already; give another folder, or delete that")
    load_system(name, device="cpu").save(options.output)
    print(f"model: {options.output}")
