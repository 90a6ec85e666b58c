"""How a video goes on from frame to frame: flicker, consistency of features, coherence, and whether it moves at all.

Videos are `[N, F, 3, H, W]` in [-1, 1] and features `[N, F, d]`, frame 0 the given one; everything is float64. A still
video is perfect in all of them but the dynamic degree, so none means anything without that one beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_i2v.evaluation.alignment import cosine

SAMPLED_FPS = 8
"""Frame rate that the dynamic degree looks at."""


def flicker_by_frame(videos: Tensor) -> Tensor:
    """VBench's temporal flickering of each pair of consecutive frames, which is high where there is little of it.

        (255 - mean over (3, H, W) of |f_t - f_{t+1}|) / 255,   pixels from 0 to 255

    Args:
        videos: `[N, F, 3, H, W]` with F >= 2.

    Returns:
        `[N, F - 1]` float64 in [0, 1]; 1 = still; column t is from frame t to t + 1.
    """
    return 1 - _differences(videos, torch.abs) / 2


def pixel_coherence(videos: Tensor) -> Tensor:
    """Temporal coherency in pixels (Emu Video): `mean over (3, H, W) of (f_{t+1} - f_t)^2`, pixels in [-1, 1].

    Args:
        videos: `[N, F, 3, H, W]` with F >= 2.

    Returns:
        `[N, F - 1]` float64; 0 = still.
    """
    return _differences(videos, torch.square)


def feature_coherence(features: Tensor) -> Tensor:
    """Temporal coherency in features (Emu Video, on CLIP's image encoder): `cos(f_t, f_{t+1})`.

    Args:
        features: `[N, F, d]` with F >= 2.

    Returns:
        `[N, F - 1]` float64.
    """
    if features.ndim != 3 or features.shape[1] < 2:
        raise ValueError(f"features: expected [N, F, d] with F >= 2, got {list(features.shape)}")
    bad = ~features.isfinite().all(dim=2)
    if bool(bad.any()):
        clip, frame = bad.nonzero()[0].tolist()
        raise ValueError(
            f"features: NaN or infinity in {int(bad.sum())} frames, the first is frame {frame} of clip {clip}"
        )
    return cosine(features[:, :-1], features[:, 1:])


def consistency(features: Tensor) -> Tensor:
    """VBench's subject consistency (on DINO's features) or background consistency (on CLIP's), for each frame t >= 1.

        1/2 (max(0, cos(f_{t-1}, f_t)) + max(0, cos(f_0, f_t)))

    Args:
        features: `[N, F, d]` with F >= 2.

    Returns:
        `[N, F - 1]` float64 in [0, 1]; column t - 1 is of frame t.
    """
    consecutive = feature_coherence(features)
    to_first = cosine(features[:, :1], features[:, 1:])
    return (consecutive.clamp(min=0) + to_first.clamp(min=0)) / 2


def image_to_video_consistency(
    features: Tensor, image: Tensor, *, weights: tuple[float, float, float] = (0.4, 0.3, 0.3)
) -> Tensor:
    """VBench-I2V's subject consistency (on DINO's features) or background consistency (on DreamSim's).

        0.4 max_{t >= 0} c(image, f_t) + 0.3 mean_{t >= 1} c(f_{t-1}, f_t) + 0.3 min_{t >= 1} c(f_{t-1}, f_t)
        c = max(0, cos)

    The first term is over all frames. Where f_0 is the input image itself it is 1 whatever follows;
    `later_frames_consistency` leaves f_0 out.

    Source: Vchitect/VBench, vbench2_beta_i2v/i2v_subject.py and i2v_background.py.

    Args:
        features: `[N, F, d]` with F >= 2.
        image: `[N, d]`, of the input images.
        weights: of the three terms. VBench has these since 2024-07-12, before that (0.5, 0.5, 0).

    Returns:
        `[N]` float64 in [0, 1].

    Raises:
        ValueError: another shape, or NaN or infinity.
    """
    return _to_image(features, image, 0, weights)


def later_frames_consistency(
    features: Tensor, image: Tensor, *, weights: tuple[float, float, float] = (0.4, 0.3, 0.3)
) -> Tensor:
    """`image_to_video_consistency` with the first term over frames t >= 1: what the video keeps of its input image.

    It isn't VBench's number and is never above it. Arguments, result and errors are the same.
    """
    return _to_image(features, image, 1, weights)


def _to_image(features: Tensor, image: Tensor, first: int, weights: tuple[float, float, float]) -> Tensor:
    consecutive = feature_coherence(features).clamp(min=0)
    if image.shape != (len(features), features.shape[2]) or not bool(image.isfinite().all()):
        raise ValueError(
            f"image: expected finite [{len(features)}, {features.shape[2]}], a row a video, got {list(image.shape)}"
        )
    to_input = cosine(image[:, None], features[:, first:]).clamp(min=0).amax(dim=1)
    return weights[0] * to_input + weights[1] * consecutive.mean(dim=1) + weights[2] * consecutive.amin(dim=1)


@dataclass(frozen=True)
class DynamicDegree:
    """Whether one video moves, and what says so."""

    dynamic: bool
    magnitudes: list[float]
    """Mean of the fastest 5 % of each pair's flow, in pixels."""


def is_dynamic(video: Tensor, flow: Callable[[Tensor, Tensor], Tensor], fps: float) -> DynamicDegree:
    """VBench's dynamic degree of one video; over many, it is the share of dynamic ones.

        every round(fps / 8)-th frame is looked at, T in all
        magnitude = mean of the top 5 % of |flow| from one of them to the next
        a pair moves if magnitude > 6 min(H, W) / 256;   the video does if round(4 T / 16) pairs or more do, at least 1

    The published numbers take RAFT's flow (raft-things.pth, 20 iterations). With another the numbers are a proxy,
    comparable only to each other.

    Args:
        video: `[F, 3, H, W]` in [-1, 1].
        flow: from frames to displacements in pixels.
        fps: frames a second, > 0.

    Raises:
        ValueError: another shape, fewer than two frames after sampling, fps <= 0, or flow that isn't finite.
    """
    if video.ndim != 4 or not fps > 0:
        raise ValueError(f"video, fps: expected [F, 3, H, W] and fps > 0, got {list(video.shape)} and {fps}")
    step = max(1, round(fps / SAMPLED_FPS))
    frames = video[::step]
    if len(frames) < 2:
        raise ValueError(
            f"video: {len(video)} frames at {fps:g} fps leave {len(frames)}, every {step}.; expected 2 or more"
        )
    speed = flow(frames[:-1], frames[1:]).double().norm(dim=1).flatten(1)  # [T - 1, H W]
    if not bool(speed.isfinite().all()):
        raise ValueError("flow: expected finite displacements, got NaN or infinity")
    fastest = speed.topk(max(1, int(0.05 * speed.shape[1])), dim=1).values
    magnitudes = fastest.mean(dim=1)
    moving = int((magnitudes > 6 * min(video.shape[-2:]) / 256).sum())
    needed = max(1, round(4 * len(frames) / 16))
    return DynamicDegree(moving >= needed, magnitudes.tolist())


def _differences(videos: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over the pixels of `measure(f_{t+1} - f_t)`, a clip at a time: `[N, F - 1]`."""
    if videos.ndim != 5 or videos.shape[1] < 2 or videos.numel() == 0:
        raise ValueError(f"videos: expected [N, F, 3, H, W] with F >= 2, got {list(videos.shape)}")
    means = torch.stack([measure(video.double().diff(dim=0)).mean(dim=(1, 2, 3)) for video in videos])
    if not bool(means.isfinite().all()):
        clip = int((~means.isfinite()).nonzero()[0, 0])
        raise ValueError(f"videos: expected finite pixels, got NaN or infinity in clip {clip}")
    return means


def drift(values: Tensor, share: float = 0.15) -> Tensor:
    """How much a quality falls from a video's beginning to its end.

        mean of the first n values - mean of the last n,   n = max(1, round(share F))

    Args:
        values: `[N, F]`, one a frame, F >= 1.

    Returns:
        `[N]` float64; 0 where F = 1.

    Source: "drift" of Zhang and Agrawala, FramePack (arXiv 2504.12626), there of its absolute value.
    """
    if values.ndim != 2 or values.shape[1] < 1:
        raise ValueError(f"values: expected [N, F] with F >= 1, got {list(values.shape)}")
    count = max(1, round(share * values.shape[1]))
    values = values.double()
    return values[:, :count].mean(dim=1) - values[:, -count:].mean(dim=1)


def cosine_by_lag(features: Tensor) -> Tensor:
    """How alike frames are that lie `lag` apart: `mean over t of cos(f_t, f_{t + lag})`.

    Args:
        features: `[N, F, d]`.

    Returns:
        `[N, F]` float64, column lag; the first is 1.
    """
    if features.ndim != 3:
        raise ValueError(f"features: expected [N, F, d], got {list(features.shape)}")
    frames = features.shape[1]
    lags = [cosine(features[:, : frames - lag], features[:, lag:]).mean(dim=1) for lag in range(frames)]
    return torch.stack(lags, dim=1)
