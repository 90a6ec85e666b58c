"""Which examples make a step's batches: encoded once, shuffled by (seed, epoch), dealt to the processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from contrastive_i2v.data.examples import Example, ExampleDataset, encode_clips, report_skipped, write_skipped
from contrastive_i2v.data.sources import read
from contrastive_i2v.data.types import NoClipLeft, Skipped
from contrastive_i2v.errors import InputError
from contrastive_i2v.randomness import seeded
from contrastive_i2v.system import System
from contrastive_i2v.training.config import DataConfig, TrainConfig
from contrastive_i2v.training.selection import SCORES, select_clips


def encode_dataset(
    config: DataConfig, system: System, *, seed: int, skipped_file: Path, following: int = 0, progress: bool = True
) -> ExampleDataset:
    """The training examples, their latents in the cache. Raises InputError.

    Args:
        skipped_file: which clips were left out and why, all of them; the first few are said.
        following: how many windows after each are encoded as well.
        progress: whether this process shows a bar, says and writes.
    """
    uncaptioned: list[Skipped] = []
    try:
        found = read(config.path, config.source, seed=seed)
        clips, uncaptioned = found.clips, found.skipped
        if progress:
            print(found)
        if config.keep < 1:
            clips = select_clips(clips, config, file=skipped_file.with_name(SCORES), progress=progress)
        dataset, unusable = encode_clips(
            clips,
            system,
            cache_dir=config.cache_dir,
            resolution=config.resolution,
            frames=config.frames,
            seed=seed,
            following=following,
            progress=progress,
        )
    except NoClipLeft as error:
        if progress:
            write_skipped(skipped_file, [*uncaptioned, *error.skipped])
        raise InputError(f"{error}; all of them are in {skipped_file}") from error
    skipped = [*uncaptioned, *unusable]
    if progress:
        write_skipped(skipped_file, skipped)
    if progress and skipped:
        print(report_skipped(skipped, file=skipped_file))
    return dataset


def build_loader(
    dataset: ExampleDataset, config: TrainConfig, accelerator: Accelerator, *, step: int, stop: int | None = None
) -> DataLoader[Example]:
    """This process's micro-batches from `step` to `stop`; None = to the last of the config's."""
    ranks = accelerator.num_processes
    per_step = config.gradient_accumulation * ranks
    everyones = batch_indices(
        len(dataset),
        config.batch_size,
        start=step * per_step,
        stop=(config.steps if stop is None else stop) * per_step,
        seed=config.seed,
    )
    mine = [rows for n, rows in enumerate(everyones) if n % ranks == accelerator.process_index]
    return DataLoader(
        dataset,
        batch_sampler=mine,
        num_workers=config.workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def batch_indices(size: int, batch_size: int, *, start: int, stop: int, seed: int) -> Iterator[list[int]]:
    """Batches number `start` to `stop` of an endless pass over `size` items, shuffled anew in each epoch.

    Batch n is the same whatever came before, in this process or another.
    """
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    for batch in range(start, stop):
        rows = []
        for position in range(batch * batch_size, (batch + 1) * batch_size):
            if position // size != epoch:
                epoch = position // size
                order = torch.randperm(size, generator=seeded(seed, "epoch", epoch))
            rows.append(int(order[position % size]))
        yield rows
