"""Small fixed networks, and methods that change the true videos in known ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from contrastive_i2v.evaluation.generators import Batch, Method
from contrastive_i2v.evaluation.results import Extractor, Metric, Report
from contrastive_i2v.evaluation.suite import Networks, evaluate
from contrastive_i2v.evaluation.videos import ReferenceSet

F = 4


def extractor(name: str, dimension: int) -> Extractor:
    return Extractor(name=name, dimension=dimension, weights="fixed", resize="none")


class Colours:
    """Mean colour and its square: what a shift or another order of the frames leaves as it is. Two classes."""

    about = extractor("colours", 6)

    def __call__(self, frames: Tensor) -> Tensor:
        mean = frames.mean(dim=(2, 3))
        return torch.cat([mean, mean.square()], dim=1)

    def classify(self, features: Tensor) -> Tensor:
        red = features[:, :1].sigmoid()
        return torch.cat([red, 1 - red], dim=1)


class Pooled:
    """A video as the mean and the spread over time of its pixels, pooled to 2 x 2."""

    about = extractor("pooled", 24)

    def __call__(self, videos: Tensor) -> Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(videos.flatten(0, 1), 2).unflatten(0, videos.shape[:2])
        return torch.cat([pooled.mean(dim=1).flatten(1), pooled.std(dim=1).flatten(1)], dim=1)


class Jump:
    """Flow: 10 pixels wherever a pixel changed at all."""

    about = extractor("jump", 2)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        moved = ((first - second).abs().amax(dim=1, keepdim=True) > 0.02).float()
        return torch.cat([10 * moved, 0 * moved], dim=1)


class Shrunk:
    """Latents: the frame at a quarter of the size."""

    about = extractor("shrunk", 3)

    def __call__(self, frames: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(frames, 4) + 0.01


class Words:
    """A CLIP whose images are their colour, and whose texts are all the same."""

    about = extractor("words", 3)

    def __call__(self, frames: Tensor) -> Tensor:
        return frames.mean(dim=(2, 3)) + 2

    def text(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(prompts), -1)


NETWORKS = Networks(image=Colours(), video=Pooled(), clip=Words(), flow=Jump(), latents=Shrunk())


def changed(name: str, change: Callable[[Tensor], Tensor], calls: list[list[str]] | None = None) -> Method:
    """A method that sees the true videos, uint8 `[F, 3, H, W]`, and changes them."""

    def generate(batch: Batch) -> Tensor:
        if calls is not None:
            calls.append([clip.name for clip in batch.clips])
        return torch.stack([change(batch.read(clip)) for clip in batch.clips])

    return Method(name, "videos", {"change": name}, lambda: generate)


def shift(video: Tensor) -> Tensor:
    return video.roll(3, dims=-1)


def shuffle(video: Tensor) -> Tensor:
    return video[[0, 2, 3, 1]]


def flicker(video: Tensor) -> Tensor:
    return (video.int() + torch.tensor([0, 30, -30, 30])[:, None, None, None]).clamp(0, 255).to(torch.uint8)


def still(video: Tensor) -> Tensor:
    return video[[0, 0, 0, 0]]


def run(
    reference: ReferenceSet,
    methods: Sequence[Method],
    output: Path,
    *,
    networks: Networks = NETWORKS,
    batch_size: int = 4,
) -> Report:
    return evaluate(reference, methods, networks, output, title="t", command="c", batch_size=batch_size, progress=False)


def metrics(report: Report, method: str) -> dict[str, Metric]:
    return {metric.name: metric for one in report.methods if one.name == method for metric in one.metrics}


def values(report: Report, method: str) -> dict[str, float]:
    return {name: metric.estimate.value for name, metric in metrics(report, method).items()}
