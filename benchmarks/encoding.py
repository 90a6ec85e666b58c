"""Clips to batches of pixels, and shards to batches of latents: `python -m benchmarks.encoding`.

**Decoding.** Frames a second, decoded, resized to 64 pixels and batched, of the same frames of the same files: those of
windows that training draws. Ours is what `encode --output` reads with, a process a core. Beside it a plain PyAV loop, a
plain decord loop, and what diffusers' InstructPix2Pix example does with its pictures (PIL opens, converts and resizes
each), over the same frames as PNG files. These run in one process, as people write them, and in a DataLoader of as many
workers as ours.

**Loading.** Latent pairs a second of one process, from shards, in batches of 16 as the trainer takes them; and the
seconds from opening a manifest of 1,000,000 examples to the first batch.

Contenders take turns; a figure is the median over the rounds with its range.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contrastive_i2v.data.examples import ClipFrames, WindowReader
from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
from contrastive_i2v.data.shard_encoding import ClipReading, encode_shards
from contrastive_i2v.data.shard_order import ShardOrder
from contrastive_i2v.data.shards import MANIFEST, ShardDataset
from contrastive_i2v.data.sources import read
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import resize_frames
from contrastive_i2v.models import load_system

SIZE = 64
FRAMES = FramesConfig(offset_std=0.0, windows_per_clip=8)
Frames = Sequence[tuple[Clip, list[int]]]


def ours(clips: Sequence[Clip], reader: WindowReader, workers: int) -> Iterator[Tensor]:
    for one in DataLoader(ClipReading(clips, reader), batch_size=None, num_workers=workers):
        assert isinstance(one, ClipFrames)
        yield from one.pixels


class Loop(Dataset[Tensor]):
    """One clip's frames at a time, resized."""

    def __init__(self, wanted: Frames, decode: Callable[[Path, list[int]], Tensor]) -> None:
        self.wanted, self.decode = wanted, decode

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, number: int) -> Tensor:
        clip, frames = self.wanted[number]
        return resize_frames(self.decode(clip.path, frames), SIZE)


def pyav(path: Path, frames: list[int]) -> Tensor:
    import av

    found = {}
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in frames:
                found[index] = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            if index == frames[-1]:
                break
    return torch.stack([found[index] for index in frames]).permute(0, 3, 1, 2)


def decord(path: Path, frames: list[int]) -> Tensor:
    import decord as library

    return torch.from_numpy(library.VideoReader(str(path), num_threads=1).get_batch(frames).asnumpy()).permute(
        0, 3, 1, 2
    )


def example_pictures(folder: Path) -> Callable[[Path, list[int]], Tensor]:
    """The example's `convert_to_np` and scaling, a picture at a time."""

    def decode(path: Path, frames: list[int]) -> Tensor:
        pictures = [
            np.array(Image.open(folder / path.stem / f"{index}.png").convert("RGB").resize((SIZE, SIZE)))
            for index in frames
        ]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)

    return decode


def decoding(clips: Sequence[Clip], reader: WindowReader, folder: Path, workers: int, rounds: int) -> dict[str, object]:
    wanted: Frames = [(clip, list(one.runs[0])) for clip in clips if isinstance(one := reader(clip), ClipFrames)]
    for clip, frames in wanted:
        (folder / clip.path.stem).mkdir(parents=True, exist_ok=True)
        for index, pixels in zip(frames, pyav(clip.path, frames), strict=True):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / clip.path.stem / f"{index}.png")
    decoders = {"PyAV": pyav, "decord": decord, "diffusers example": example_pictures(folder)}
    contenders: dict[str, Callable[[], Iterator[Tensor]]] = {
        f"ours, {workers} workers": lambda: ours(clips, reader, workers),
        "ours, no workers": lambda: ours(clips, reader, 0),
    }
    for name, decode in decoders.items():
        for count in (0, workers):
            loop = Loop(wanted, decode)
            contenders[f"{name}, {count or 'no'} workers"] = lambda loop=loop, count=count: iter(
                DataLoader(loop, batch_size=None, num_workers=count)
            )
    total = sum(len(frames) for _, frames in wanted)

    def run(make: Callable[[], Iterator[Tensor]]) -> float:
        begin = time.perf_counter()
        held: list[Tensor] = []
        seen = 0
        for part in make():
            held.append(part)
            seen += len(part)
            if sum(map(len, held)) >= 64:
                torch.cat(held)  # a batch for the encoder
                held = []
        assert seen == total, (seen, total)
        return total / (time.perf_counter() - begin)

    rates = in_turns({name: lambda make=make: run(make) for name, make in contenders.items()}, rounds)
    return {"frames": total, "frames_a_second": rates}


def loading(clips: Sequence[Clip], reader: WindowReader, folder: Path, rounds: int) -> dict[str, object]:
    system = load_system("tiny", device="cpu")
    manifest = encode_shards(clips, system, folder, reader, progress=False)
    assert manifest is not None
    root = str(folder)

    def rate(workers: int) -> float:
        dataset = ShardDataset(root, system, reader, held=17)
        order = ShardOrder(tuple(one.examples for one in dataset.manifest.shards), 16, streams=8, buffer=2, seed=0)
        batches = itertools.islice(order.batches(itertools.count()), 2000)
        loader = iter(DataLoader(dataset, sampler=list(batches), batch_size=None, num_workers=workers))
        next(loader)  # workers are there, and the shards are read
        begin = time.perf_counter()
        count = sum(len(batch.raw) for batch in loader)
        return count / (time.perf_counter() - begin)

    def first(root: str) -> float:
        begin = time.perf_counter()
        dataset = ShardDataset(root, system, reader, held=17)
        order = ShardOrder(tuple(one.examples for one in dataset.manifest.shards), 16, streams=8, buffer=2, seed=0)
        dataset[next(order.batches([12_345]))]
        return time.perf_counter() - begin

    million = folder / "million"
    million.mkdir()
    copies = -(-1_000_000 // manifest.examples)
    for one in manifest.shards:
        for number in range(copies):
            os.link(folder / one.name, million / f"{number}-{one.name}")
    shards = [dataclasses.replace(one, name=f"{n}-{one.name}") for n in range(copies) for one in manifest.shards]
    many = dataclasses.replace(manifest, shards=shards, examples=copies * manifest.examples)
    (million / MANIFEST).write_text(json.dumps(dataclasses.asdict(many)))
    return {
        "examples": manifest.examples,
        "pairs_a_second": in_turns({"no workers": lambda: rate(0), "1 worker": lambda: rate(1)}, rounds),
        "seconds_to_first_batch_of_a_million": in_turns(
            {f"{many.examples} examples": lambda: first(str(million))}, rounds
        ),
    }


def in_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in random.sample(list(runs.items()), len(runs)):
            found[name].append(run())
    return {name: {"median": statistics.median(x), "least": min(x), "most": max(x)} for name, x in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=120)
    parser.add_argument(
        "--passes", type=int, default=5, help="over the clips in a round, so that workers' start is small"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="a JSON file of the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shapes(folder / "clips", ShapesConfig(train_clips=options.clips, test_clips=0))
        clips = read(folder / "clips" / "train").clips
        reader = WindowReader.of(load_system("tiny", device="cpu"), SIZE, FRAMES, seed=0)
        found = {
            "decoding": decoding(options.passes * clips, reader, folder / "pictures", options.workers, options.rounds),
            "loading": loading(clips, reader, folder / "shards", options.rounds),
        }
    text = json.dumps(found, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
