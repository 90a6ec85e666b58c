"""`contrastive-i2v encode`: latents ahead of training, in the cache or in shards."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

from contrastive_i2v.data.examples import SKIPPED, WindowReader, none_left_in
from contrastive_i2v.data.shard_encoding import encode_shards
from contrastive_i2v.data.types import NoClipLeft, Skipped
from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.models import load_system
from contrastive_i2v.models.instruct_pix2pix import InstructPix2PixConfig
from contrastive_i2v.models.offloading import offload_encoders
from contrastive_i2v.system import System, SystemConfig, default_device
from contrastive_i2v.training.config import DataConfig
from contrastive_i2v.training.recipes import RECIPES

DESCRIPTION = """Encode the latents and prompt embeddings that training with the same model, data options and seed will
read. Without --output the cache is filled. With it, shards are written, by as many processes as torchrun or accelerate
launch start, none of which waits for another; training reads them with --data.shards.

--recipe NAME   start from the model, system, data and seed of one of train's
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is encoded, and where to."""

    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """"tiny", a diffusers folder, or a hub id: its autoencoder and text encoder are used."""
    system: SystemConfig = field(default_factory=InstructPix2PixConfig)
    """What is made of the model: it decides which frames make a window."""
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    """The training run's seed: it decides which windows are drawn."""
    following: int = 0
    """Windows after each that are encoded as well, as far as its clip goes on: own_samples.depth of the training, less
    one."""
    output: Path | None = None
    """Folder of the shards. Run again, it goes on where it was stopped."""
    offload_encoders: bool = False
    """Bring the weights of the autoencoder and the text encoder to the GPU a layer at a time: much less memory for more
    copying."""
    workers: int = max(1, (os.cpu_count() or 1) - 1)
    """Processes that decode videos ahead of the encoder, for shards."""
    frames_at_once: int = 64
    """Frames that the autoencoder gets together, for shards."""
    shard_megabytes: int = 32
    """A shard is closed when it has as many."""

    def __post_init__(self) -> None:
        check_fields(self, {"workers": 0, "following": 0, "frames_at_once": 1, "shard_megabytes": 1})
        if self.data.shards is not None:
            raise InputError("data.shards: are read; expected output, where they are written")


def run(arguments: Sequence[str]) -> None:
    """Parse the options and encode."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    own, rest = first.parse_known_args(list(arguments))
    options = tyro.cli(
        Options, default=_of(own.recipe), prog="contrastive-i2v encode", description=DESCRIPTION, args=rest
    )
    from contrastive_i2v.training.batches import encode_dataset  # takes seconds

    if options.output is not None:
        write_shards(options, options.output)
        return
    data, system = options.data, _load(options, default_device())
    dataset = encode_dataset(
        data,
        system,
        seed=options.seed,
        skipped_file=data.cache_dir.expanduser() / SKIPPED,
        following=options.following,
    )
    print(f"{len(dataset)} windows of {len(dataset.clips)} clips in {data.cache_dir}")


def _of(recipe: str | None) -> Options:
    """The options that a recipe starts with. Raises InputError."""
    if recipe is None:
        return Options()
    if recipe not in RECIPES:
        raise InputError(f"--recipe {recipe}: no such recipe; expected one of {', '.join(RECIPES)}")
    config = RECIPES[recipe]
    return Options(model=config.model, system=config.system, data=config.data, seed=config.seed)


def write_shards(options: Options, output: Path) -> None:
    """This process's part; the last one to end says what there is."""
    from contrastive_i2v.training.batches import bucket_sizes, read_clips, say_skipped

    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    device = default_device()
    if device.type == "cuda":  # this process's own, where there are several
        device = type(device)("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    data, system = options.data, _load(options, device)
    read = WindowReader.of(
        system,
        data.resolution,
        data.frames,
        seed=options.seed,
        following=options.following,
        buckets=bucket_sizes(data, system),
        lengths=data.lengths,
    )
    skipped_file = output / SKIPPED
    uncaptioned: list[Skipped] = []
    try:
        clips, uncaptioned = read_clips(data, seed=options.seed, skipped_file=skipped_file, progress=rank == 0)
        manifest = encode_shards(
            clips,
            system,
            output,
            read,
            rank=rank,
            ranks=ranks,
            workers=options.workers,
            frames_at_once=options.frames_at_once,
            shard_bytes=options.shard_megabytes * 2**20,
            progress=rank == 0,
        )
    except NoClipLeft as error:
        raise none_left_in(skipped_file, error, uncaptioned) from error
    if manifest is not None:
        say_skipped([*uncaptioned, *(Skipped(Path(path), reason) for path, reason in manifest.skipped)], skipped_file)
        print(f"{manifest.examples} windows of {manifest.clips} clips in {len(manifest.shards)} shards in {output}")


def _load(options: Options, device: torch.device) -> System:
    """With its network in the host's memory, and the other parts on a device while they encode."""
    system = load_system(options.model, options.system, device="cpu")
    offload_encoders(system, device, layers=options.offload_encoders)
    return system
