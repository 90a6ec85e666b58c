"""`contrastive-i2v train`: a recipe or an earlier run's config, with options on top."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import tyro
from torch import Tensor

from contrastive_i2v.data.sources import SourceConfig
from contrastive_i2v.data.types import NoClipLeft
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.calibration import CALIBRATION, CalibrationConfig, NothingToCalibrate
from contrastive_i2v.models import load_system
from contrastive_i2v.processes import process_state
from contrastive_i2v.training.config import TrainConfig, load_config
from contrastive_i2v.training.recipes import RECIPES, stages

DESCRIPTION = f"""Fine-tune a model on a folder of captioned videos.

--recipe NAME   start from one of
{textwrap.indent(textwrap.fill(", ".join(RECIPES), 100), " " * 16)}
                (default: contrastive); NAME of NAME/STAGE is all its stages, each from the model before, with the
                options below for every one and --output as their folder. With options of their own (--help): tiny-base
                trains the packaged model anew, tiny-text-to-image a base that knows no image yet, tiny-ltx-base the
                autoencoder that tiny-ltx-video begins with, and shapes-reader the classifier that evaluate reads
                generated clips with
--config FILE   start from an earlier run's config.yaml; every option below overrides it
--no-calibration
                leave the last step out, which chooses how the model is sampled, on the clips of --data.validation-path
"""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and train."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--config", type=Path)
    first.add_argument("--no-calibration", action="store_true")
    start, rest = first.parse_known_args(list(arguments))
    if start.recipe in OTHERS and not start.config:
        OTHERS[start.recipe](rest)
        return
    configs = read_configs(start.recipe, start.config, rest, others=OTHERS, prog="train", description=DESCRIPTION)
    from contrastive_i2v.training.checkpoint import list_checkpoints
    from contrastive_i2v.training.trainer import Trainer, is_trained

    state = process_state()
    for config in configs:
        folder = config.output / "model"
        if len(configs) > 1:
            if is_trained(config):
                if state.is_main_process:
                    print(f"trained already: {folder}")
                continue
            # what an interrupted run of all stages left goes on
            config = replace(config, resume=config.resume and bool(list_checkpoints(config.output / "checkpoints")))
        folder = Trainer(config).run()
        if state.is_main_process:
            print(f"model: {folder}")
    if config.data.validation_path is not None and not start.no_calibration:
        lengths = sorted({16, config.preview.frames}, reverse=True)  # the clips may be too short for the first
        command, source = shlex.join(["train", *arguments]), config.data.validation_source
        _calibrate(folder, config.data.validation_path, lengths, config.output, command, source)
    if state.is_main_process:
        print(f"next:  contrastive-i2v sample --model {folder} --image IMAGE --prompt TEXT")
    state.destroy_process_group()


def _calibrate(
    folder: Path,
    validation: Path,
    lengths: Sequence[int],
    output: Path,
    command: str,
    source: SourceConfig | None = None,
) -> None:
    """The last step of a training with validation clips, of all its processes; what keeps it from being done is said,
    and the model stays."""
    from contrastive_i2v.cli.calibrate import ClipsOptions, calibrate_model, format_calibration

    if (folder / CALIBRATION).exists():
        return
    state, reason = process_state(), ""
    for frames in lengths:
        try:
            found = calibrate_model(
                load_system(folder),
                folder,
                ClipsOptions(path=validation, frames=frames, source=source or SourceConfig()),
                output / "calibration",
                config=CalibrationConfig(),
                command=f"contrastive-i2v {command}",
            )
        except InputError as error:
            if state.num_processes > 1 and not isinstance(error, (NoClipLeft, NothingToCalibrate)):
                raise  # this process's alone, and the others wait for it: its end is theirs
            reason = reason or str(error)
        else:
            if state.is_main_process:
                print("\n".join(format_calibration(found)))
            return
    if state.is_main_process:
        print(f"not calibrated: {reason}")


def _train_tiny_base(arguments: Sequence[str]) -> None:
    from contrastive_i2v.training.tiny_base import TinyBaseConfig, train_tiny_base

    config = tyro.cli(TinyBaseConfig, prog="contrastive-i2v train --recipe tiny-base", args=arguments)
    folder = train_tiny_base(config)
    _calibrate(folder, config.output / "clips" / "test", (16,), config.output, "train --recipe tiny-base")
    print(f"model: {folder}")


def _make_tiny_ltx(arguments: Sequence[str]) -> None:
    from contrastive_i2v.training.tiny_ltx import TinyLTXConfig, make_tiny_ltx

    config = tyro.cli(TinyLTXConfig, prog="contrastive-i2v train --recipe tiny-ltx-base", args=arguments)
    print(f"model: {make_tiny_ltx(config)}")


def _train_text_to_image(arguments: Sequence[str]) -> None:
    from contrastive_i2v.training.text_to_image import TextToImageConfig, train_text_to_image

    config = tyro.cli(TextToImageConfig, prog="contrastive-i2v train --recipe tiny-text-to-image", args=arguments)
    print(f"model: {train_text_to_image(config)}")


def _train_shapes_reader(arguments: Sequence[str]) -> None:
    from contrastive_i2v.evaluation.extractors.shapes_training import ShapesReaderConfig, train_shapes_reader

    config = tyro.cli(ShapesReaderConfig, prog="contrastive-i2v train --recipe shapes-reader", args=arguments)
    codec = load_system("tiny").codec

    def autoencode(frames: Tensor) -> Tensor:
        return codec.decode(codec.normalize(codec.sample(codec.encode(frames[:, None]))))[:, 0]

    print(f"weights: {train_shapes_reader(config, autoencode)}")


OTHERS = {
    "tiny-base": _train_tiny_base,
    "tiny-ltx-base": _make_tiny_ltx,
    "tiny-text-to-image": _train_text_to_image,
    "shapes-reader": _train_shapes_reader,
}
"""Recipes whose configs are no TrainConfig."""


def read_configs(
    recipe: str | None,
    config: Path | None,
    arguments: Sequence[str],
    *,
    others: Collection[str] = (),
    prog: str,
    description: str,
) -> list[TrainConfig]:
    """The configs of a recipe's stages, or of a file, with the options on top; of several stages, each is in its folder
    of --output, from the model of the stage that it names. Raises InputError."""
    if recipe and config:
        raise InputError("--recipe and --config: expected one of them, got both")
    name = recipe or "contrastive"
    chosen = {"": load_config(TrainConfig, config)} if config else stages(name)
    if not chosen:
        raise InputError(f"--recipe {name}: no such recipe; expected one of {', '.join((*RECIPES, *others))}")

    def parse(default: TrainConfig) -> TrainConfig:
        command = f"contrastive-i2v {prog}"
        return tyro.cli(TrainConfig, default=default, prog=command, description=description, args=arguments)

    if len(chosen) == 1:
        return [parse(default) for default in chosen.values()]
    configs = []
    for number, default in enumerate(chosen.values()):
        root = default.output.parent
        stage = parse(replace(default, output=root))
        model = default.model.replace(str(root), str(stage.output)) if number else stage.model
        configs.append(replace(stage, output=stage.output / default.output.name, model=model))
    return configs
