"""Random numbers as functions of names: nothing is saved or restored, and nothing disturbs anything else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator_of(name: str) -> torch.Generator:
    """A CPU generator that is a function of `name` alone, unrelated for any other name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def seeded(*parts: object) -> torch.Generator:
    """The generator of these parts, as `seeded(seed, "step", 17)`."""
    return generator_of(repr(parts))


def frame_generator(seed: int, frame: int) -> torch.Generator:
    """The generator of what a rollout draws for one sample from this frame on."""
    return generator_of(f"{int(seed)}/{int(frame)}")


def draw(shape: Sequence[int], generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise `[B, *]` of that shape, float32, on the CPU.

    Args:
        generator: one for the whole batch, or one a sample: then a sample's noise is the same in any batch.
    """
    if isinstance(generator, torch.Generator):
        return torch.randn(*shape, generator=generator)
    return torch.stack([torch.randn(*shape[1:], generator=one) for one in generator])
