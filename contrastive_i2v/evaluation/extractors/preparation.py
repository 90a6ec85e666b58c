"""What every extractor does before its network: check frames, resize them, and take them in chunks.

Resizing is torch.nn.functional.interpolate alone; nothing here needs torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

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


def centre_square(frames: Tensor, size: int) -> Tensor:
    """The shorter side to `size` by antialiased bicubic, then the central `[size, size]`; clipped to [-1, 1]."""
    scale = size / min(frames.shape[-2:])
    height, width = (max(size, int(side * scale)) for side in frames.shape[-2:])
    top, left = (height - size) // 2, (width - size) // 2
    return stretch(frames, height, width)[..., top : top + size, left : left + size]


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
