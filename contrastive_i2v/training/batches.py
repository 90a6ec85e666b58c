"""Which examples make a step's batches: encoded once, shuffled by (seed, epoch), dealt to the processes; from the cache
of a folder's clips, or from shards."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Sampler

from contrastive_i2v.data.buckets import Bucket, aspect_ratio_sizes, bucket_rows
from contrastive_i2v.data.examples import (
    SKIPPED,
    Example,
    ExampleDataset,
    WindowReader,
    encode_clips,
    none_left_in,
    report_skipped,
    write_skipped,
)
from contrastive_i2v.data.shard_order import Place, ShardOrder, ShardReading
from contrastive_i2v.data.shards import ShardDataset
from contrastive_i2v.data.sources import read
from contrastive_i2v.data.types import Clip, NoClipLeft, Skipped
from contrastive_i2v.data.video import as_size
from contrastive_i2v.errors import InputError
from contrastive_i2v.randomness import seeded
from contrastive_i2v.system import Size, System
from contrastive_i2v.training.config import DataConfig, TrainConfig
from contrastive_i2v.training.own_samples import windows_after
from contrastive_i2v.training.scores import Condition, ScoreTable
from contrastive_i2v.training.selection import SCORES, select_clips

TrainData: TypeAlias = ExampleDataset | ShardDataset


def open_dataset(config: TrainConfig, system: System, accelerator: Accelerator) -> TrainData:
    """The training examples. Several processes share the work of encoding them. Raises InputError."""
    data = config.data
    if data.shards is None:
        dataset = encode_dataset(
            data,
            system,
            seed=config.seed,
            skipped_file=config.output / SKIPPED,
            following=windows_after(config.own_samples, system),
            share=accelerator.process_index / accelerator.num_processes,
            progress=accelerator.is_main_process,
        )
        if accelerator.is_main_process:
            say_buckets(dataset, config)
        return dataset
    read = WindowReader.of(
        system,
        data.resolution,
        data.frames,
        seed=config.seed,
        following=windows_after(config.own_samples, system),
        buckets=bucket_sizes(data, system),
        lengths=data.lengths,
    )
    if data.is_bucketed and data.streams % accelerator.num_processes:
        raise InputError(
            f"data.streams={data.streams} for {accelerator.num_processes} processes; with data.buckets or lengths "
            "expected a multiple, since all of them train on one bucket at a time"
        )
    makers = accelerator.num_processes * max(1, config.workers)
    held = data.shuffle_shards * math.ceil(data.streams / makers) + 1
    shards = ShardDataset(data.shards, system, read, held=held)
    if accelerator.is_main_process:
        has = shards.manifest
        print(f"{data.shards}: {has.examples} windows of {has.clips} clips in {len(has.shards)} shards")
        say_buckets(shards, config)
    return shards


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
            buckets=bucket_sizes(config, system),
            lengths=config.lengths,
            frames=config.frames,
            seed=seed,
            following=following,
            first=int(share * len(clips)),
            progress=progress,
        )
    except NoClipLeft as error:
        raise none_left_in(skipped_file, error, uncaptioned, write=progress) from error
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
    clips, skipped, table = found.clips, found.skipped, None
    if config.scores is not None:
        table = ScoreTable(config.scores)
        clips, others = table.choose(clips, [Condition.parse(one) for one in config.where])
        skipped = [*skipped, *others]
        if not clips:
            raise NoClipLeft(skipped)
    if config.keep < 1:
        clips = select_clips(clips, config, file=skipped_file.with_name(SCORES), table=table, progress=progress)
    return clips, skipped


def bucket_sizes(config: DataConfig, system: System) -> list[Size]:
    """The sizes that clips are dealt to; none where all have `resolution`. Raises InputError, also for lengths of a
    system that can't have them."""
    if config.lengths and not system.any_length:
        raise InputError(
            f"data.lengths: the windows of {system.config.kind} have {system.window.length} frames; expected none"
        )
    if not config.buckets and config.max_aspect_ratio == 1:
        return []
    sizes = list(config.buckets)
    if not sizes:
        sizes = aspect_ratio_sizes(as_size(config.resolution), config.max_aspect_ratio, system.size_step)
    if not sizes:
        raise InputError(
            f"data.max_aspect_ratio={config.max_aspect_ratio:g}: no size of at most the area of resolution "
            f"{config.resolution} has it; expected a larger one"
        )
    return [system.check_size(size, "data.buckets") for size in sizes]


def rows_of(buckets: Iterable[Bucket | None], frames: int, config: TrainConfig) -> list[int]:
    """The rows of each bucket's batches, by the pixels of batch_size examples of `frames` at `resolution`; two at least
    where rows are contrasted, since each needs a negative."""
    whole = Bucket(*as_size(config.data.resolution), frames)
    least = 2 if config.loss.contrasts_rows else 1
    rows = bucket_rows([bucket or whole for bucket in buckets], config.batch_size * math.prod(whole), least=least)
    return rows if config.data.is_bucketed else [config.batch_size]


def say_buckets(dataset: TrainData, config: TrainConfig) -> None:
    """Print each bucket's size, frames, windows, videos and rows a batch."""
    buckets = dataset.buckets()
    for (bucket, examples), rows in zip(buckets.items(), rows_of(buckets, dataset.frames, config), strict=True):
        if bucket is not None and isinstance(dataset, ShardDataset):
            shards = [dataset.manifest.shards[number] for number in examples]
            windows, clips = sum(one.examples for one in shards), sum(one.clips for one in shards)
            print(f"bucket {bucket}: {windows} windows of {clips} clips in {len(shards)} shards; {rows} a batch")
        elif bucket is not None and isinstance(dataset, ExampleDataset):
            videos = dataset.videos(examples)
            alone = ", so no negatives" if videos == 1 and config.loss.contrasts_rows else ""
            print(f"bucket {bucket}: {len(examples)} windows of {videos} videos{alone}; {rows} a batch")


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
    buckets = dataset.buckets()
    rows = rows_of(buckets, dataset.frames, config)
    if isinstance(dataset, ShardDataset):
        places = partial(shard_batches, dataset, rows, mine, config.data, seed=config.seed)
        return DataLoader(dataset, sampler=_Lazy(places), batch_size=None, **options)
    batches = partial(batch_indices, list(buckets.values()), rows, mine, seed=config.seed, processes=ranks)
    return DataLoader(dataset, batch_sampler=_Lazy(batches), **options)


class _Lazy(Sampler[Any]):
    """What a function makes, when it is asked for."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def batch_indices(
    buckets: Sequence[Sequence[int]], rows: Sequence[int], numbers: Iterable[int], *, seed: int, processes: int = 1
) -> Iterator[list[int]]:
    """These batches of an endless pass over the examples of each bucket, shuffled anew in each epoch.

    Batch n, of process n mod `processes`, is the same whatever came before, in this process or another; all processes'
    batches of one micro-batch are of one bucket.
    """
    passes = [_Pass(bucket, count, seed) for bucket, count in zip(buckets, rows, strict=True)]
    sizes = [len(bucket) for bucket in buckets]
    for bucket, one in bucket_turns(sizes, rows, numbers, seed=seed, together=processes):
        yield passes[bucket].batch(one)


def shard_batches(
    dataset: ShardDataset, rows: Sequence[int], numbers: Iterable[int], config: DataConfig, *, seed: int
) -> Iterator[list[Place]]:
    """These batches of an endless pass over the shards of each bucket, as `ShardOrder` has them; batch n is of stream
    n mod S of its bucket's shards, and the S batches from each multiple of S on are of one bucket."""
    buckets = list(dataset.buckets().values())
    counts = [tuple(dataset.manifest.shards[shard].examples for shard in shards) for shards in buckets]
    passes = [
        ShardReading(ShardOrder(some, batch_size, config.streams, config.shuffle_shards, seed))
        for some, batch_size in zip(counts, rows, strict=True)
    ]
    for bucket, one in bucket_turns(list(map(sum, counts)), rows, numbers, seed=seed, together=config.streams):
        yield [place._replace(shard=buckets[bucket][place.shard]) for place in passes[bucket].batch(one)]


def bucket_turns(
    examples: Sequence[int], rows: Sequence[int], numbers: Iterable[int], *, seed: int, together: int
) -> Iterator[tuple[int, int]]:
    """The bucket of each of these batches, and which of that bucket's batches it is.

    From each multiple of `together` T on, T batches are of one bucket. Every epoch goes once through each bucket's N
    examples, in batches of R rows, so that up to epoch e a bucket has had floor(e N / (R T)) turns of T batches: those
    that an epoch adds are shuffled over the buckets. One of fewer examples than a turn's waits over several epochs.
    """
    if len(rows) == 1:
        yield from ((0, number) for number in numbers)
        return
    sizes = [(count, batch * together) for count, batch in zip(examples, rows, strict=True)]

    def begun(epoch: int) -> list[int]:
        """Turns of each bucket before an epoch."""
        return [epoch * examples // batch for examples, batch in sizes]

    order: list[tuple[int, int]] = []  # bucket, and which of its turns
    first = 0  # turns before `order`
    for number in numbers:
        place, offset = divmod(number, together)
        if not first <= place < first + len(order):
            latest = (place + 1) * min(-(-batch // examples) for examples, batch in sizes)
            epoch = bisect_right(range(latest + 1), place, key=lambda epoch: sum(begun(epoch))) - 1
            first, ends = sum(begun(epoch)), begun(epoch + 1)
            added = [(n, one) for n, start in enumerate(begun(epoch)) for one in range(start, ends[n])]
            drawn = torch.randperm(len(added), generator=seeded(seed, "buckets", epoch)).tolist()
            counts = [iter(range(start, end)) for start, end in zip(begun(epoch), ends, strict=True)]
            order = [(added[i][0], next(counts[added[i][0]])) for i in drawn]
        bucket, one = order[place - first]
        yield bucket, one * together + offset


class _Pass:
    """An endless pass over a bucket's examples in batches of `rows`."""

    def __init__(self, examples: Sequence[int], rows: int, seed: int) -> None:
        self.examples, self.rows, self.seed = examples, rows, seed
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.long)

    def batch(self, number: int) -> list[int]:
        found = []
        for position in range(number * self.rows, (number + 1) * self.rows):
            epoch, place = divmod(position, len(self.examples))
            if epoch != self.epoch:
                self.epoch = epoch
                self.order = torch.randperm(len(self.examples), generator=seeded(self.seed, "epoch", epoch))
            found.append(self.examples[int(self.order[place])])
        return found
