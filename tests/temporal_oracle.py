"""The temporal layers' equations in NumPy float64, one frame and one position at a time; nothing of the library's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = Mapping[str, Array]


def weights_of(module: nn.Module) -> dict[str, Array]:
    """Parameters and buffers in float64."""
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def part(weights: Weights, name: str) -> dict[str, Array]:
    """The weights below a module's name."""
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def linear(weights: Weights, x: Array) -> Array:
    """x [*, in] -> [*, out]."""
    return x @ weights["weight"].T + weights.get("bias", np.zeros(1))


def layer_norm(weights: Weights, x: Array, eps: float = 1e-5) -> Array:
    """Over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weights["weight"] + weights["bias"]


def group_norm(weights: Weights, frame: Array, groups: int, eps: float = 1e-6) -> Array:
    """Of one frame [C, h, w]."""
    out = np.empty_like(frame)
    size = len(frame) // groups
    for start in range(0, len(frame), size):
        values = frame[start : start + size]
        out[start : start + size] = (values - values.mean()) / math.sqrt(values.var() + eps)
    return out * weights["weight"][:, None, None] + weights["bias"][:, None, None]


def convolve_time(weights: Weights, video: Array) -> Array:
    """out_t = sum_k W_k x_(t + k - 1) + bias over a video [T, C, h, w]; frames outside it are zero."""
    kernel = weights["weight"][..., 0, 0]  # [out, in, 3]
    out = np.zeros_like(video) + weights["bias"][None, :, None, None]
    for t in range(len(video)):
        for k in range(3):
            if 0 <= t + k - 1 < len(video):
                out[t] += np.einsum("oi, ihw -> ohw", kernel[..., k], video[t + k - 1])
    return out


def turn(x: Array, position: int, heads: int, rope: str) -> Array:
    """RoPE of the joined channels x [c] at a position: pair (2i, 2i + 1) turns by position times its frequency.

    "all": frequency 10000^(-2j / d) for pair j of each head of d channels. "reference": 10000^(-2i / (c / 2)) for pair
    i of the first c / 2 joined channels, and the others stay.
    """
    channels, width = len(x), len(x) // heads
    out = x.copy()
    for i in range(channels // 2):
        if rope == "all":
            frequency = 10000.0 ** (-2 * (i % (width // 2)) / width)
        elif 2 * i < channels // 2:
            frequency = 10000.0 ** (-2 * i / (channels // 2))
        else:
            frequency = 0.0
        pair = complex(x[2 * i], x[2 * i + 1]) * np.exp(1j * position * frequency)
        out[2 * i], out[2 * i + 1] = pair.real, pair.imag
    return out


def attention(query: Array, keys: list[Array], values: list[Array], heads: int) -> Array:
    """One query [c] over keys and values, head by head; the heads' results side by side."""
    width, parts = len(query) // heads, []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        logits = np.array([query[own] @ key[own] for key in keys]) / math.sqrt(width)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        parts.append(sum(share * value[own] for share, value in zip(shares, values, strict=True)))
    return np.concatenate(parts)


def over_time(weights: Weights, video: Array, heads: int, rope: str, window: int) -> Array:
    """Attention of video [T, h, w, c] over its frames at each position, and over the window x window - 1 neighbours of
    the position in frame 0, edges repeated, which are at time 0."""
    frames, height, width, _ = video.shape
    q, k, v = (linear(part(weights, name), video) for name in ("to_q", "to_k", "to_v"))
    out, side = np.empty_like(video), window // 2
    for y in range(height):
        for x in range(width):
            around = [
                (min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1))
                for dy in range(-side, side + 1)
                for dx in range(-side, side + 1)
                if (dy, dx) != (0, 0)
            ]
            keys = [turn(k[s, y, x], s, heads, rope) for s in range(frames)] + [k[0, i, j] for i, j in around]
            values = [v[s, y, x] for s in range(frames)] + [v[0, i, j] for i, j in around]
            for t in range(frames):
                out[t, y, x] = attention(turn(q[t, y, x], t, heads, rope), keys, values, heads)
    return linear(part(weights, "to_out.0"), out)


def to_text(weights: Weights, video: Array, text: Array, heads: int, rope: str) -> Array:
    """Attention of video [T, h, w, c], its queries turned by their time, over tokens [L, E], which have no time."""
    q = linear(part(weights, "to_q"), video)
    keys, values = (list(linear(part(weights, name), text)) for name in ("to_k", "to_v"))
    out = np.empty_like(video)
    for t, y, x in np.ndindex(*video.shape[:3]):
        out[t, y, x] = attention(turn(q[t, y, x], t, heads, rope), keys, values, heads)
    return linear(part(weights, "to_out.0"), out)


def temporal_resnet(weights: Weights, video: Array, groups: int) -> Array:
    """x + (1 - alpha) f(x) of a video [T, C, h, w]."""
    h = video
    for number in ("1", "2"):
        h = np.stack([silu(group_norm(part(weights, f"norm{number}"), frame, groups)) for frame in h])
        h = convolve_time(part(weights, f"conv{number}"), h)
    return video + (1 - weights["alpha"][0]) * h


def temporal_transformer(
    weights: Weights, video: Array, text: Array, *, groups: int, heads: int, rope: str, window: int
) -> Array:
    """x + (1 - alpha) f(x) of a video [T, C, h, w] and its text [L, E]."""
    h = np.stack([group_norm(part(weights, "norm"), frame, groups) for frame in video])
    h = linear(part(weights, "proj_in"), np.moveaxis(h, 1, -1))  # [T, h, w, C]
    block = part(weights, "transformer_blocks.0")
    h = h + over_time(part(block, "attn1"), layer_norm(part(block, "norm1"), h), heads, rope, window)
    h = h + to_text(part(block, "attn2"), layer_norm(part(block, "norm2"), h), text, heads, rope)
    wide, gate = np.split(linear(part(block, "ff.net.0.proj"), layer_norm(part(block, "norm3"), h)), 2, axis=-1)
    h = h + linear(part(block, "ff.net.2"), wide * gelu(gate))
    h = np.moveaxis(linear(part(weights, "proj_out"), h), -1, 1)
    return video + (1 - weights["alpha"][0]) * h
