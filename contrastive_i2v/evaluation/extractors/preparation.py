"""What every extractor does before its network: check frames, resize them, and take them in chunks.

Resizing is torch.nn.functional.interpolate alone; nothing here needs torchvision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.evaluation.results import Extractor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def check_frames(frames: Tensor, argument: str = "frames") -> None:
    """Raise ValueError unless `frames` is finite float `[N, 3, H, W]` with N >= 1."""
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"{argument}: expected [N, 3, H, W] with N >= 1, got {list(frames.shape)}")
    _check_values(frames, argument)


def check_videos(videos: Tensor, least: int = 1) -> None:
    """Raise ValueError unless `videos` is finite float `[N, F, 3, H, W]` with N >= 1 and F >= least."""
    if videos.ndim != 5 or videos.shape[2] != 3 or 0 in videos.shape or videos.shape[1] < least:
        raise ValueError(f"videos: expected [N, F, 3, H, W] with N >= 1 and F >= {least}, got {list(videos.shape)}")
    _check_values(videos, "videos")


def _check_values(frames: Tensor, argument: str) -> None:
    if not frames.is_floating_point():
        raise ValueError(f"{argument}: expected float pixels in [-1, 1], got {frames.dtype}; divide by 127.5, minus 1")
    finite = frames.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{argument}: expected finite pixels, got NaN or infinity in item {int((~finite).nonzero()[0])}"
        )


def stretch(frames: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic resize to (height, width) whatever the aspect, clipped to [-1, 1]."""
    resized = F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Resize:
    """How frames of any size become those of a network whose input is `size` pixels a side.

    Pixels are in [-1, 1], and clipped to it after the resize.
    """

    name: str = ""
    """Of the metric whose rule it is, as a report shows it beside the network; "" = the network's own rule."""
    mode: Literal["bilinear", "bicubic"] = "bicubic"
    antialias: bool = True
    fit: Literal["square", "shorter", "stretch"] = "square"
    """"square": the shorter side to `size x enlarged`, then the central square of `size`. "shorter": without the cut.
    "stretch": both sides to `size`, whatever the aspect."""
    enlarged: float = 1.0
    eight_bit: bool = False
    """Round to 8-bit values after the resize, as torchvision does with tensors of bytes."""

    def __call__(self, frames: Tensor, size: int) -> Tensor:
        """`[N, 3, H, W]` -> `[N, 3, size, size]`, or with "shorter" `[N, 3, h, w]`, min(h, w) = size."""
        height, width = frames.shape[-2:]
        side = round(size * self.enlarged)
        if self.fit == "stretch":
            target = (size, size)
        else:  # the longer side is cut to whole pixels, as torchvision does
            target = (side * height // min(height, width), side * width // min(height, width))
        if target != (height, width):
            frames = F.interpolate(
                frames, size=target, mode=self.mode, antialias=self.antialias, align_corners=False
            ).clamp(-1, 1)
            if self.eight_bit:
                frames = ((frames + 1) * 127.5).round() / 127.5 - 1
        if self.fit != "square":
            return frames
        top, left = (round((long - size) / 2) for long in target)
        return frames[..., top : top + size, left : left + size]

    def describe(self, size: int) -> str:
        """What a report says of it."""
        how = f"{'antialiased ' * self.antialias}{self.mode}{', no antialias' * (not self.antialias)}"
        if self.fit == "stretch":
            return f"{how} to {size} x {size}, aspect not kept"
        cut = f", then the central square of {size}" if self.fit == "square" else ", no crop"
        return f"shorter side to {round(size * self.enlarged)} by {how}{cut}"


CENTRE_SQUARE = Resize()
"""What CLIP's own preprocessing does, and ours for DINO where no metric says otherwise."""
VBENCH_SUBJECT = Resize(name="VBench subject", mode="bilinear", antialias=False, fit="shorter", eight_bit=True)
VBENCH_BACKGROUND = Resize(name="VBench background", antialias=False, eight_bit=True)
VBENCH_I2V_SUBJECT = Resize(name="VBench I2V subject", enlarged=256 / 224, eight_bit=True)
VBENCH_I2V_BACKGROUND = Resize(name="VBench I2V background", fit="stretch", eight_bit=True)
"""The transforms of Vchitect/VBench, vbench/utils.py and vbench2_beta_i2v/utils.py, at a size of 224. The I2V ones
leave the antialias to torchvision, which does it since 0.17."""


def normalise(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels in [-1, 1] -> `(x - mean) / std` by channel, with x, mean and std in [0, 1]."""
    shape = (3, 1, 1)
    return ((frames + 1) / 2 - frames.new_tensor(mean).view(shape)) / frames.new_tensor(std).view(shape)


def frames_at_once(device: torch.device) -> int:
    """Frames of about 224 x 224 that go through a network together.

    8 on a CPU, where more is slower (EfficientNet-lite0 falls to half its speed at 64), 64 elsewhere.
    """
    return 8 if device.type == "cpu" else 64


def in_chunks(run: Callable[..., Tensor], *inputs: Tensor, limit: int, device: torch.device) -> Tensor:
    """`run` over at most `limit` items at a time: without gradients, inputs float32 on `device`, result on the CPU.

    Only a chunk of the input is ever on the device, so its memory doesn't grow with N.
    """
    with torch.no_grad():
        chunks = zip(*(torch.split(x, max(1, limit)) for x in inputs), strict=True)
        return torch.cat([run(*(x.to(device, torch.float32) for x in chunk)).float().cpu() for chunk in chunks])


class FrameNetwork:
    """An image extractor, but for what it makes of a chunk of frames."""

    device: torch.device

    def __call__(self, frames: Tensor) -> Tensor:
        """`[N, 3, H, W]` in [-1, 1] -> `[N, d]`. Raises ValueError for another shape, type or NaN."""
        check_frames(frames)
        return in_chunks(self._features, frames, limit=frames_at_once(self.device), device=self.device)

    def _features(self, frames: Tensor) -> Tensor:
        raise NotImplementedError


Network = TypeVar("Network", bound="ResizableNetwork")


class ResizableNetwork(FrameNetwork):
    """A frame network that can be run with another resize rule than its own."""

    about: Extractor
    size: int
    """Pixels a side of its input."""
    resize: Resize = CENTRE_SQUARE

    def resized(self: Network, rule: Resize) -> Network:
        """The same network and weights behind another rule; its `about` says which, in name and resize."""
        other = copy.copy(self)
        other.resize = rule
        name = f"{self.about.name}, {rule.name}" if rule.name else self.about.name
        other.about = replace(self.about, name=name, resize=rule.describe(self.size))
        return other
