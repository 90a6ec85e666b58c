"""What frames say of a clip's quality: motion, sharpness, cuts, bars, overlays, and a hash to find it again by.

Functions of a clip's frames, in order; a person then chooses thresholds. They measure pixels and judge nothing: what
moves along with the camera is a still picture on a moving one, as a watermark is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

CUT_DIFFERENCE, CUT_RATIO, CUT_NEIGHBOURS, CUT_SHARE = 0.1, 2.0, 4, 0.65
BAR_RANGE = 16 / 127.5
EDGE, EDGE_FRAMES, STILL_RANGE, NEIGHBOURHOOD, BORDER = 0.15, 16, 0.25, 17, 2
HASH_FRAMES, HASH_SIDE = 4, 8
BANDS = 16
"""A hash's 256 bits are compared where one of so many equal parts is the same."""
DUPLICATE_BITS = BANDS - 1
"""Hashes that differ in at most so many bits are of near duplicates; any two such share a part."""


def luma(pixels: Tensor) -> Tensor:
    """`[F, 3, H, W]` -> `[F, 1, H, W]`: ITU-R BT.601."""
    return (pixels * pixels.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def motion(pixels: Tensor) -> float:
    """mean |x_{i+1} - x_i| over frames `[F, 3, H, W]` in [-1, 1]; 0 for one frame."""
    return float(pixels.diff(dim=0).abs().mean()) if len(pixels) > 1 else 0.0


def sharpness(pixels: Tensor) -> float:
    """The variance over a frame of the Laplacian of its luma, averaged over frames `[F, 3, H, W]` in [-1, 1]."""
    kernel = pixels.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    laplacian = F.conv2d(luma(pixels), kernel.view(1, 1, 3, 3))  # [F, 1, H - 2, W - 2]
    return float(laplacian.flatten(1).var(dim=1, unbiased=False).mean())


def possible_cuts(frames: Tensor) -> list[int]:
    """Frames of `[F, 3, H, W]` uint8 at which another shot may begin: hard cuts, and the fastest motion.

    With d_i the `changes` of frame i from the one before it and m_i the median of the four differences on either side,

        d_i > 0.1  and  d_i > 2 (m_i + 0.02)

    and, unlike at a flash, the frames before and after that pair (i - 2 and i + 1) differ by more than half of d_i.
    """
    small = _small(frames)
    change = changes(small)
    found = []
    for i, one in enumerate(change.tolist(), start=1):
        near = torch.cat([change[max(0, i - 1 - CUT_NEIGHBOURS) : i - 1], change[i : i + CUT_NEIGHBOURS]])
        median = float(near.median()) if len(near) else 0.0
        across = (small[min(i + 1, len(small) - 1)] - small[max(i - 2, 0)]).abs().mean()
        if one > CUT_DIFFERENCE and one > CUT_RATIO * (median + 0.02) and across > one / 2:
            found.append(i)
    return found


def is_cut(frames: Tensor) -> bool:
    """Whether neighbouring frames `[F, 3, H, W]` uint8 are of two shots that meet between two of them: one of the
    `changes` is more than 0.65 of their sum. Motion spreads over all."""
    change = changes(_small(frames))
    return bool(change.max() > CUT_SHARE * change.sum())


def changes(small: Tensor) -> Tensor:
    """The mean difference of each frame `[F, 3, h, w]` from the one before it, `[F - 1]`."""
    return small.diff(dim=0).abs().mean((1, 2, 3))


def _small(frames: Tensor) -> Tensor:
    """uint8 `[F, 3, H, W]`, averaged to 16 x 16 places in [-1, 1]."""
    return torch.cat([F.adaptive_avg_pool2d(part.float() / 127.5 - 1, 16) for part in torch.split(frames, 16)])


def picture(frames: Tensor) -> tuple[slice, slice]:
    """The rows and columns of `[F, 3, H, W]` uint8 between the constant ones at the borders: the picture without bars.

    A border row is constant where its luma varies by at most 16 of 255 over the row and all frames.
    """
    parts = [luma(part.float() / 127.5 - 1)[:, 0] for part in torch.split(frames, 16)]
    low = torch.stack([part.amin(0) for part in parts]).amin(0)  # [H, W]
    high = torch.stack([part.amax(0) for part in parts]).amax(0)

    def inside(axis: int) -> slice:
        constant = (high.amax(axis) - low.amin(axis) <= BAR_RANGE).int()
        first, last = (int(one.cumprod(0).sum()) for one in (constant, constant.flip(0)))
        return slice(first, max(first, len(constant) - last))

    return inside(1), inside(0)


def letterbox(frames: Tensor) -> float:
    """The share of `[F, 3, H, W]` uint8 that lies outside the `picture`."""
    rows, columns = picture(frames)
    height, width = (int(one.stop - one.start) for one in (rows, columns))
    return 1 - height * width / math.prod(frames.shape[2:])


def overlay(frames: Tensor) -> float:
    """The share of the `picture` of `[F, 3, H, W]` uint8, without two pixels at its border, that is strong edges which
    stay while what is around them moves: watermarks.

    In 16 frames spread evenly, g_t the luma's gradient at a pixel: it has a still edge where min_t |g_t| > 0.15 and
    |mean_t g_t| > 0.95 mean_t |g_t|. The edge counts where, of the pixels around it (17 x 17) without a still edge, at
    least half vary by more than 0.25 over the frames, in [-1, 1].
    """
    rows, columns = picture(frames)
    some = frames[spread(len(frames), EDGE_FRAMES)][..., rows, columns][..., BORDER:-BORDER, BORDER:-BORDER]
    if len(some) < 2 or min(some.shape[2:]) < NEIGHBOURHOOD:
        return 0.0
    grey = luma(some.float() / 127.5 - 1)  # [F, 1, h, w]
    across = F.pad(grey[..., 2:] - grey[..., :-2], (1, 1, 0, 0))
    down = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    size = torch.hypot(across, down)
    steady = torch.hypot(across.mean(0), down.mean(0)) > 0.95 * size.mean(0)
    edge = ((size.amin(0) > EDGE) & steady).float()  # [1, h, w]
    around = 1 - F.max_pool2d(edge, 3, stride=1, padding=1)
    moving = (grey.amax(0) - grey.amin(0) > STILL_RANGE).float() * around
    count = [F.avg_pool2d(one, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2) for one in (moving, around)]
    return float((edge * (count[0] > 0.5 * count[1])).mean())


def perceptual_hash(frames: Tensor) -> bytes:
    """32 bytes of `[F, 3, H, W]` uint8: 64 bits of each of four frames spread evenly.

    Of a frame's luma, averaged to 32 x 32 places, the 8 x 8 lowest coefficients of the cosine transform; a bit says
    that one is above the median of all but the first (pHash, Zauner 2010).
    """
    side = 4 * HASH_SIDE
    small = F.adaptive_avg_pool2d(luma(frames[spread(len(frames), HASH_FRAMES)].double()), side)[:, 0]
    place = torch.arange(side, dtype=torch.float64)
    transform = torch.cos(math.pi / side * (place + 0.5) * place[:HASH_SIDE, None])  # [8, 32]
    found = (transform @ small @ transform.T).flatten(1)  # [frames, 64]
    bits = found > found[:, 1:].median(dim=1, keepdim=True).values + 1e-6  # a constant frame has none
    return np.packbits(bits.repeat_interleave(HASH_FRAMES // len(bits), 0).numpy()).tobytes().ljust(32, b"\0")


def spread(count: int, wanted: int) -> list[int]:
    """The middles of `wanted` equal parts of `count` frames; all of them where there are no more."""
    wanted = min(count, wanted)
    return [(2 * part + 1) * count // (2 * wanted) for part in range(wanted)]


def earlier_duplicates(hashes: Sequence[bytes]) -> list[int]:
    """How many clips before each are near duplicates of it: 0 for the first of a group, and for all that have none.

    A group is what a chain of hashes connects that differ in at most 15 bits. Any two such are the same in one of the
    16 parts of 16 bits, so only hashes that share a part are compared.
    """
    distinct: dict[bytes, int] = {}
    numbers = [distinct.setdefault(one, len(distinct)) for one in hashes]
    parts = np.frombuffer(b"".join(distinct), np.uint16).reshape(-1, BANDS)
    groups = np.arange(len(parts))  # of each distinct hash, the first one's place
    for band in range(BANDS):
        order = np.argsort(parts[:, band], kind="stable")
        starts = np.unique(parts[order, band], return_index=True)[1]
        left, distance = np.arange(len(order)), 1
        while len(left := left[left + distance < len(order)]):  # hashes of one band lie beside each other
            first, second = order[left], order[left + distance]
            same = parts[first, band] == parts[second, band]
            left, first, second = left[same], first[same], second[same]
            apart = groups[first] != groups[second]
            first, second = first[apart], second[apart]
            near = _BITS[parts[first] ^ parts[second]].sum(1) <= DUPLICATE_BITS
            _join(groups, first[near], second[near])
            distance += 1
            if distance.bit_count() == 1:  # now and then: a cluster is one group soon, and has no pairs left to compare
                own = groups[order]
                mixed = np.minimum.reduceat(own, starts) < np.maximum.reduceat(own, starts)
                left = left[mixed[np.searchsorted(starts, left, side="right") - 1]]
    counts: dict[int, int] = {}
    earlier = []
    for group in groups[numbers].tolist():
        earlier.append(counts.get(group, 0))
        counts[group] = earlier[-1] + 1
    return earlier


_BITS: NDArray[np.int64] = np.array([value.bit_count() for value in range(1 << 16)])


def _join(groups: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
    """Make one group of those of each pair."""
    while len(first):
        pair = np.sort([groups[first], groups[second]], axis=0)
        np.minimum.at(groups, pair[1], pair[0])
        while (groups != (further := groups[groups])).any():
            groups[:] = further
        apart = groups[first] != groups[second]
        first, second = first[apart], second[apart]
