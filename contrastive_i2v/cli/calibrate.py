"""`contrastive-i2v calibrate`: find how a trained model is best sampled, and let the model say so."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from contrastive_i2v.cli.evaluate import PIXELS_AT_ONCE
from contrastive_i2v.data.sources import SourceConfig
from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.evaluation.calibration import CALIBRATION, Calibration, CalibrationConfig, calibrate, read_default
from contrastive_i2v.evaluation.report.calibration import write_page
from contrastive_i2v.evaluation.videos import read_reference_set
from contrastive_i2v.files import locked_folder, write_whole
from contrastive_i2v.models import load_system, read_description
from contrastive_i2v.models.loading import locate, split_options
from contrastive_i2v.processes import process_state
from contrastive_i2v.system import DESCRIPTION, System


@dataclass(frozen=True, kw_only=True)
class ClipsOptions:
    """Held-out clips; not those that the result is reported on."""

    path: Path
    """Folder of videos with captions: NAME.txt beside each, or one metadata.csv / metadata.jsonl; or a dataset in any
    form of docs/data.md."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """How it is read; no split = the one for validation, where it has splits."""
    clips: int | None = 32
    """The first so many; None = all."""
    frames: int = 16
    """Length of each rollout, the given first frame included."""
    frame_rate: float | None = None
    """Frames a second; None = what the model was trained at."""

    def __post_init__(self) -> None:
        check_fields(self, {"clips": 3, "frames": 2}, positive=("frame_rate",))


@dataclass(frozen=True, kw_only=True)
class Options(CalibrationConfig):
    """Choose a model's steps, guidance, keyframes and scale of the prediction by rollouts of held-out clips.

    The model's folder keeps the result as its sampler's defaults: sample, evaluate, previews and the pipeline use them.
    The same command goes on where it was stopped. Under torchrun or accelerate launch, every process makes the rollouts
    of its share of the clips.
    """

    model: str
    """A folder that train wrote, or with --save any model that sample takes; FOLDER?offload=leaf keeps its weights in
    the host's memory, but for a layer's at a time."""
    data: ClipsOptions
    save: Path | None = None
    """Folder for a copy of the model with the result; None = the model's own folder."""
    output: Path = Path("calibration")
    """Folder of the page, calibration.html, and of what a later run takes up again."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options, calibrate, and print what was found."""
    options = tyro.cli(Options, prog="contrastive-i2v calibrate", args=arguments)
    name, given = split_options(options.model)
    if other := given.keys() - {"offload"}:
        raise InputError(f"--model {options.model}: expected no option of the model's but offload, got {min(other)}")
    folder = Path(locate(name))
    if options.save is None and (options.model == "tiny" or not (folder / DESCRIPTION).exists()):
        raise InputError(
            f"--model {options.model}: isn't a folder that this library wrote, so its sampler's defaults can't be kept "
            "in it; give --save FOLDER for a copy of the model with them"
        )
    state = process_state()
    found = calibrate_model(
        load_system(options.model),
        folder,
        options.data,
        options.output,
        config=options,
        save=options.save,
        command=shlex.join(["contrastive-i2v", "calibrate", *arguments]),
    )
    if state.is_main_process:
        print("\n".join(["", *format_calibration(found), "", f"page:  {options.output / 'calibration.html'}"]))
        print(f"model: {options.save or folder}")
    state.destroy_process_group()


def calibrate_model(
    system: System,
    folder: Path,
    data: ClipsOptions,
    output: Path,
    *,
    config: CalibrationConfig,
    command: str,
    save: Path | None = None,
) -> Calibration:
    """Calibrate a system, write the page, and keep the result in the model's folder, or in a copy of the model.

    A model that was calibrated before starts from the sampler that it had before that. All of several processes call
    this; the main one writes. Raises InputError.
    """
    main = process_state().is_main_process
    system.sampler = read_default(folder / CALIBRATION) or system.sampler
    size = system.size
    reference = read_reference_set(
        data.path,
        frames=data.frames,
        resolution=size,
        frame_rate=data.frame_rate or system.fps,
        limit=data.clips,
        source=data.source,
        purpose="validation",
    )
    at_once = max(1, min(config.batch_size, PIXELS_AT_ONCE // math.prod(size)))
    with locked_folder(output) if main else nullcontext():
        found, clips = calibrate(system, reference, replace(config, batch_size=at_once), folder=output)
        system.sampler = found.chosen.sampler
        if not main:
            return found
        write_page(found, clips, output, title=f"Calibration of {folder.parent.name}/{folder.name}", command=command)
        if save is None:
            said = read_description(folder)
            system.save_description(folder, said.adapter if said else None)
        else:
            system.save(save)
        write_whole((save or folder) / CALIBRATION, lambda part: part.write_text(found.to_json(), encoding="utf-8"))
    return found


def format_calibration(found: Calibration) -> list[str]:
    """What a person reads at the end."""
    lines = []
    for name, trial in (("before", found.default), ("after", found.chosen)):
        numbers = f"error {trial.error:.4f}, Frechet {trial.frechet:.3f}, motion {trial.motion:.2f}"
        lines.append(f"{name:7}{numbers}, objective {trial.objective:.3f}: {trial.sampler}")
    gap = found.difference
    told = "" if gap.high < 0 else "; not told apart from the sampler before"
    return [*lines, f"objective {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] on {found.clips} clips{told}"]
