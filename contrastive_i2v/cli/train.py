"""`contrastive-i2v train`: a recipe or an earlier run's config, with options on top."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import tyro

from contrastive_i2v.errors import InputError
from contrastive_i2v.training.config import TrainConfig, load_config
from contrastive_i2v.training.recipes import RECIPES

DESCRIPTION = f"""Fine-tune a model on a folder of captioned videos.

--recipe NAME   start from one of {", ".join(list(RECIPES)[:3])},
                {", ".join(list(RECIPES)[3:])}
                (default: contrastive); tiny-base trains the packaged model anew
--config FILE   start from an earlier run's config.yaml; every option below overrides it
"""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and train."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--config", type=Path)
    start, rest = first.parse_known_args(list(arguments))
    if start.recipe and start.config:
        raise InputError("--recipe and --config: expected one of them, got both")
    if start.recipe == "tiny-base":
        from contrastive_i2v.training.tiny_base import TinyBaseConfig, train_tiny_base

        base = tyro.cli(TinyBaseConfig, prog="contrastive-i2v train --recipe tiny-base", args=rest)
        print(f"model: {train_tiny_base(base)}")
        return
    name = start.recipe or "contrastive"
    if name not in RECIPES:
        raise InputError(f"--recipe {name}: no such recipe; expected one of {', '.join(RECIPES)}, tiny-base")
    default = load_config(TrainConfig, start.config) if start.config else RECIPES[name]
    config = tyro.cli(TrainConfig, default=default, prog="contrastive-i2v train", description=DESCRIPTION, args=rest)
    from contrastive_i2v.training.trainer import Trainer

    folder = Trainer(config).run()
    print(f"model: {folder}\nnext:  contrastive-i2v sample --model {folder} --image IMAGE --prompt TEXT")
