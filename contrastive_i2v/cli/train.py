"""`contrastive-i2v train`: a recipe or an earlier run's config, with options on top."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tyro
from torch import Tensor

from contrastive_i2v.errors import InputError
from contrastive_i2v.training.config import TrainConfig, load_config
from contrastive_i2v.training.recipes import RECIPES, stages

DESCRIPTION = f"""Fine-tune a model on a folder of captioned videos.

--recipe NAME   start from one of
{textwrap.indent(textwrap.fill(", ".join(RECIPES), 100), " " * 16)}
                (default: contrastive); NAME of NAME/STAGE is all its stages, each from the model before, with the
                options below for every one and --output as their folder; tiny-base trains the packaged model anew, and
                shapes-reader the classifier that evaluate reads generated clips with
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
    if start.recipe == "shapes-reader":
        _train_shapes_reader(rest)
        return
    name = start.recipe or "contrastive"
    chosen = {"": load_config(TrainConfig, start.config)} if start.config else stages(name)
    if not chosen:
        known = ", ".join((*RECIPES, "tiny-base", "shapes-reader"))
        raise InputError(f"--recipe {name}: no such recipe; expected one of {known}")
    configs = _configs(chosen, rest)
    from contrastive_i2v.training.checkpoint import list_checkpoints
    from contrastive_i2v.training.trainer import Trainer, is_trained

    for config in configs:
        folder = config.output / "model"
        if len(configs) > 1:
            if is_trained(config):
                print(f"trained already: {folder}")
                continue
            # what an interrupted run of all stages left goes on
            config = replace(config, resume=config.resume and bool(list_checkpoints(config.output / "checkpoints")))
        folder = Trainer(config).run()
        print(f"model: {folder}")
    print(f"next:  contrastive-i2v sample --model {folder} --image IMAGE --prompt TEXT")


def _train_shapes_reader(arguments: Sequence[str]) -> None:
    from contrastive_i2v.evaluation.extractors.shapes_training import ShapesReaderConfig, train_shapes_reader
    from contrastive_i2v.models import load_system

    config = tyro.cli(ShapesReaderConfig, prog="contrastive-i2v train --recipe shapes-reader", args=arguments)
    codec = load_system("tiny").codec

    def autoencode(frames: Tensor) -> Tensor:
        return codec.decode(codec.normalize(codec.sample(codec.encode(frames[:, None]))))[:, 0]

    print(f"weights: {train_shapes_reader(config, autoencode)}")


def _configs(chosen: dict[str, TrainConfig], arguments: Sequence[str]) -> list[TrainConfig]:
    """The configs with the options on top; of several stages, each in its folder of --output, from the model of the
    stage that it names."""

    def parse(default: TrainConfig) -> TrainConfig:
        prog = "contrastive-i2v train"
        return tyro.cli(TrainConfig, default=default, prog=prog, description=DESCRIPTION, args=arguments)

    if len(chosen) == 1:
        return [parse(default) for default in chosen.values()]
    configs = []
    for number, default in enumerate(chosen.values()):
        root = default.output.parent
        config = parse(replace(default, output=root))
        model = default.model.replace(str(root), str(config.output)) if number else config.model
        configs.append(replace(config, output=config.output / default.output.name, model=model))
    return configs
