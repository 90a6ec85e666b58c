"""Which examples make a step's batches: encoded once, shuffled by (seed, epoch), dealt to the processes; from the cache
of a folder's clips, or from shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Sampler

from contrastive_i2v.data.examples import (
    SKIPPED,
    Example,
    ExampleDataset,
    WindowReader,
    encode_clips,
    report_skipped,
    write_skipped,
)
from contrastive_i2v.data.shard_order import ShardOrder
from contrastive_i2v.data.shards import ShardDataset
from contrastive_i2v.data.sources import read
from contrastive_i2v.data.types import Clip, NoClipLeft, Skipped
from contrastive_i2v.errors import InputError
from contrastive_i2v.randomness import seeded
from contrastive_i2v.system import System
from contrastive_i2v.training.config import DataConfig, TrainConfig
from contrastive_i2v.training.own_samples import windows_after
from contrastive_i2v.training.selection import SCORES, select_clips

TrainData: TypeAlias = ExampleDataset | ShardDataset


def open_dataset(config: TrainConfig, system: System, accelerator: Accelerator) -> TrainData:
    """The training examples. Several processes share the work of encoding them. Raises InputError."""
    data = config.data
    if data.shards is None:
        return encode_dataset(
            data,
            system,
            seed=config.seed,
            skipped_file=config.output / SKIPPED,
            following=windows_after(config.own_samples, system),
            share=accelerator.process_index / accelerator.num_processes,
            progress=accelerator.is_main_process,
        )
    if config.own_samples.on:
        raise InputError("own_samples: shards don't say which windows follow each; expected data.path in their place")
    read = WindowReader.of(system, data.resolution, data.frames, seed=config.seed)
    makers = accelerator.num_processes * max(1, config.workers)
    held = data.shuffle_shards * math.ceil(data.streams / makers) + 1
    dataset = ShardDataset(data.shards, system, read, held=held)
    if accelerator.is_main_process:
        has = dataset.manifest
        print(f"{data.shards}: {has.examples} windows of {has.clips} clips in {len(has.shards)} shards")
    return dataset


def encode_dataset(
    config: DataConfig,
    system: System,
    *,
    seed: int,
    skipped_file: Path,
    following: int = 0,
    share: float = 0.0,
    progress: bool = True,
) -> ExampleDataset:
    """The training examples, their latents in the cache. Raises InputError.

    Args:
        skipped_file: which clips were left out and why, all of them; the first few are said.
        following: how many windows after each are encoded as well.
        share: of the clips, those that this process encodes last, since others begin with them.
        progress: whether this process shows a bar, says and writes.
    """
    uncaptioned: list[Skipped] = []
    try:
        clips, uncaptioned = read_clips(config, seed=seed, skipped_file=skipped_file, progress=progress)
        dataset, unusable = encode_clips(
            clips,
            system,
            cache_dir=config.cache_dir,
            resolution=config.resolution,
            frames=config.frames,
            seed=seed,
            following=following,
            first=int(share * len(clips)),
            progress=progress,
        )
    except NoClipLeft as error:
        if progress:
            write_skipped(skipped_file, [*uncaptioned, *error.skipped])
        raise InputError(f"{error}; all of them are in {skipped_file}") from error
    if progress:
        say_skipped([*uncaptioned, *unusable], skipped_file)
    return dataset


def read_clips(
    config: DataConfig, *, seed: int, skipped_file: Path, progress: bool = True
) -> tuple[list[Clip], list[Skipped]]:
    """The clips to train on, and what was left out of the source. Raises InputError."""
    found = read(config.path, config.source, seed=seed)
    if progress:
        print(found)
    if config.keep == 1:
        return found.clips, found.skipped
    clips = select_clips(found.clips, config, file=skipped_file.with_name(SCORES), progress=progress)
    return clips, found.skipped


def say_skipped(skipped: Sequence[Skipped], file: Path) -> None:
    """Print the first ones and write all of them."""
    write_skipped(file, skipped)
    if skipped:
        print(report_skipped(skipped, file=file))


def build_loader(
    dataset: TrainData, config: TrainConfig, accelerator: Accelerator, *, step: int, stop: int | None = None
) -> DataLoader[Example]:
    """This process's micro-batches from `step` to `stop`; None = to the last of the config's."""
    ranks = accelerator.num_processes
    per_step = config.gradient_accumulation * ranks
    start, stop = step * per_step, (config.steps if stop is None else stop) * per_step
    mine = range(start + accelerator.process_index, stop, ranks)
    options: dict[str, Any] = {"num_workers": config.workers, "pin_memory": accelerator.device.type == "cuda"}
    if isinstance(dataset, ShardDataset):
        order = ShardOrder(
            tuple(shard.examples for shard in dataset.manifest.shards),
            batch_size=config.batch_size,
            streams=config.data.streams,
            buffer=config.data.shuffle_shards,
            seed=config.seed,
        )
        return DataLoader(dataset, sampler=_Lazy(partial(order.batches, mine)), batch_size=None, **options)
    batches = partial(batch_indices, len(dataset), config.batch_size, mine, seed=config.seed)
    return DataLoader(dataset, batch_sampler=_Lazy(batches), **options)


class _Lazy(Sampler[Any]):
    """What a function makes, when it is asked for."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def batch_indices(size: int, batch_size: int, numbers: Iterable[int], *, seed: int) -> Iterator[list[int]]:
    """These batches of an endless pass over `size` items, shuffled anew in each epoch.

    Batch n is the same whatever came before, in this process or another.
    """
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    for batch in numbers:
        rows = []
        for position in range(batch * batch_size, (batch + 1) * batch_size):
            if position // size != epoch:
                epoch = position // size
                order = torch.randperm(size, generator=seeded(seed, "epoch", epoch))
            rows.append(int(order[position % size]))
        yield rows
