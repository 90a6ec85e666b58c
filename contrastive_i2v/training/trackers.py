"""Who is told a run's figures and shown its previews beside its own log: TensorBoard, W&B, trackio."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from PIL import Image

from contrastive_i2v.data.video import probe, read_frames, write_gif
from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import write_whole


class Tracker(Protocol):
    """A run in one of them."""

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log scalars of a step."""

    def show(self, step: int, name: str, file: Path) -> None:
        """Log a video (mp4) or an image (png)."""

    def close(self, error: BaseException | None) -> None:
        """The run has ended: hand over what is held back. `error` is what ended it early."""


class TensorBoard:
    """Event files in `folder/tensorboard`; what they hold of later steps than `from_step` is dropped."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.board: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """As `Tracker`."""
        for name, value in row.items():
            self.board.add_scalar(name, value, step)
        self.board.flush()

    def show(self, step: int, name: str, file: Path) -> None:
        """A video becomes a GIF, which TensorBoard plays as an image; its own videos are GIFs by moviepy."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        with TemporaryDirectory() as folder:
            if file.suffix == ".mp4":
                info, video, file = probe(file), file, Path(folder) / "preview.gif"
                write_gif(file, read_frames(video, range(info.frames)), info.fps)
            with Image.open(file) as first:
                width, height = first.size
            content = file.read_bytes()
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        self.board.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        self.board.flush()

    def close(self, error: BaseException | None) -> None:
        """As `Tracker`."""
        self.board.close()


class Wandb:
    """A run of wandb, or of trackio, whose functions are named alike; one that is resumed goes on as the same run.

    Neither forgets a step, so those up to `told`, which it has from before a kill, aren't told again: on a CPU their
    figures are the same to the bit.

    Raises InputError where it can't start: not logged in, no network.
    """

    def __init__(
        self, module: str, folder: Path, *, project: str, config: Mapping[str, Any], key: str, told: int
    ) -> None:
        self.module, self.told = importlib.import_module(module), told
        options = {"dir": str(folder), "id": key} if module == "wandb" else {"embed": False}
        try:
            self.run = self.module.init(
                project=project, name=f"{folder.name}-{key}", config=dict(config), resume="allow", **options
            )
        except Exception as error:
            way_out = "; log in by `wandb login`, or set WANDB_MODE=offline" if module == "wandb" else ""
            raise InputError(f"trackers: {module} doesn't start ({one_line(error)}){way_out}") from error

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """As `Tracker`."""
        if step > self.told and row:
            self.run.log(dict(row), step=step)

    def show(self, step: int, name: str, file: Path) -> None:
        """As `Tracker`."""
        if step > self.told:
            kind = self.module.Image if file.suffix == ".png" else self.module.Video
            self.run.log({name: kind(str(file))}, step=step)

    def close(self, error: BaseException | None) -> None:
        """As `Tracker`."""
        failed = {"exit_code": 1} if error is not None and self.module.__name__ == "wandb" else {}
        self.run.finish(**failed)


def check_trackers(names: Sequence[str]) -> None:
    """Raises InputError for one that isn't installed."""
    # a folder of that name, as wandb leaves in a working directory, has no origin
    if missing := [name for name in names if getattr(find_spec(name), "origin", None) is None]:
        raise InputError(
            f"trackers: {', '.join(missing)} not installed: pip install {' '.join(missing)}, or leave it out"
        )


def open_trackers(
    names: Sequence[str], folder: Path, *, project: str, config: Mapping[str, Any], from_step: int, told: int
) -> list[Tracker]:
    """The trackers of a run that goes on after `from_step` and was logged up to step `told`. Raises InputError."""
    key = _key(folder, new=from_step == 0) if {"wandb", "trackio"} & set(names) else ""
    return [
        TensorBoard(folder, from_step=from_step)
        if name == "tensorboard"
        else Wandb(name, folder, project=project, config=config, key=key, told=told if from_step else 0)
        for name in names
    ]


def _key(folder: Path, *, new: bool) -> str:
    """What tells this run from others of its name; kept in the folder, so that it goes on as the same run."""
    path = folder / "tracked_as.txt"
    if new or not path.exists():
        write_whole(path, lambda part: part.write_text(secrets.token_hex(4)))
    return path.read_text().strip()
