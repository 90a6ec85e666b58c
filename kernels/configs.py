"""Block sizes: a fixed table, no autotuning. What limits each kernel is known from its shape (registers and shared
memory of the accumulator tile, programs enough to fill the machine), a sweep would cost seconds at the first call of
every shape, can't run while a CUDA graph is captured, and would make results depend on timings."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

TARGET_PROGRAMS = 128  # about one a multiprocessor


class Config(NamedTuple):
    """A tile of the result is block_m x block_n, made block_k at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    slice_elements: int = 0
    max_registers: int | None = None  # where ptxas would otherwise spill a few to be thrifty with them


def slice_count(queries: int, candidates: tuple[int, ...], elements: int) -> int:
    """Into how many slices the small regime cuts D on a GPU, for 16-bit latents."""
    return -(-elements // small_configs(queries, candidates, elements, torch.bfloat16, 90)[0].slice_elements)


def _power_of_two(size: int, low: int, high: int) -> int:
    """The smallest power of two >= size, within [low, high]."""
    return max(low, min(high, 1 << (size - 1).bit_length()))


class LargeConfig(NamedTuple):
    """Of the two matrix products, and how many rows of tiles share operands in L2."""

    scaled_exp: Config
    gradient: Config
    group: int


def large_config(dtype: torch.dtype, arch: int, normalize: bool) -> LargeConfig:
    """The largest accumulators that the epilogues leave registers for, 128 a thread at 128 x 256 on 8 warps, and
    stages to fill the shared memory of an H100 or an A100. float32 has no matrix instructions here: multiply-adds from
    registers."""
    if arch == 0:
        return LargeConfig(Config(256, 256, 128, 4, 1), Config(256, 128, 256, 4, 1), 2)
    if dtype == torch.float32:
        return LargeConfig(Config(64, 64, 32, 8, 2), Config(64, 64, 32, 4, 2), 16)
    square = Config(128, 128, 64, 8, 4 if arch == 90 else 3)
    wide = Config(128, 256, 64, 8, 4)
    fits = arch == 90 and dtype == torch.bfloat16 and not normalize  # float16's and the cosine's epilogues would spill
    return LargeConfig(square, wide if fits else square, 16)


def strip_rows(queries: int, most_candidates: int, elements: int, itemsize: int, block_m: int) -> int:
    """Queries a strip: 256 MiB of weights and 128 MiB of x0 and partial gradients, at most 4096, whole tiles."""
    fits = min((256 << 20) // (most_candidates * itemsize), (128 << 20) // (elements * (itemsize + 4)), 4096, queries)
    return max(1, -(-fits // block_m) if fits == queries else fits // block_m) * block_m


@functools.lru_cache(maxsize=4096)
def small_configs(
    queries: int, candidates: tuple[int, ...], elements: int, dtype: torch.dtype, arch: int
) -> tuple[Config, Config, Config]:
    """Of the partial logits, the softmax and the gradient."""
    most = max(candidates, default=1)
    if arch == 0:
        rows, columns, width = _power_of_two(queries, 16, 1024), _power_of_two(most, 16, 1024), 1024
        depth = _power_of_two(elements, 16, width)
        partial = Config(rows, columns, depth, 4, 1, depth * -(-elements // (2 * depth)))  # two slices, to add up
        lines = min(rows, 256)
        return partial, Config(lines, columns, 0, 4, 1), Config(lines, depth, columns, 4, 1)

    wide = dtype == torch.float32  # no matrix instructions: multiply-adds from registers
    block_m = _power_of_two(queries, 16, 32 if wide else 64)
    block_n = _power_of_two(most, 16, 32 if wide else 128)
    block_k = 32 if wide else 64
    tiles = -(-queries // block_m) * sum(-(-n // block_n) for n in candidates)
    slices = max(1, min(TARGET_PROGRAMS // max(tiles, 1), 32))
    slice_elements = block_k * max(1, -(-elements // (block_k * slices)))
    warps = 4 if block_m * block_n <= 4096 else 8
    partial = Config(block_m, block_n, block_k, warps, 1 if wide else 3, slice_elements)

    lines = _power_of_two(queries // TARGET_PROGRAMS, 1, 4)
    softmax = Config(lines, _power_of_two(most, 16, 512 // lines), 0, 4, 1, max_registers=128)

    block_d = 128 if queries >= 128 and not wide else 64
    grad_k = _power_of_two(block_n, 16, 32 if wide else 64)
    grad = Config(block_m, block_d, grad_k, 8 if block_m * block_d > 4096 or wide else 4, 1 if wide else 3)
    return partial, softmax, grad
