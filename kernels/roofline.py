"""Counted work of the kernels' plan beside the floor that the algebra sets: a model, not a measurement.

The floor reads every input once, writes the gradient once, and does 4 B N D FLOP a bank. The plan is what the launchers
do: a third product in the small regime; weights, x0 and partial gradients through memory in the large one. What several
programs read is counted once: the L2 cache is taken to hold it.
"""

from __future__ import annotations

from typing import NamedTuple

H200_BYTES_PER_SECOND = 4.3e12
H200_FLOP_PER_SECOND = 790e12  # bfloat16, dense, as a bare matrix product reaches
SMALL_LOGITS = 1 << 19  # dispatch.MAX_SMALL_LOGITS, here without importing triton
MAX_STRIP_ROWS = 4096


class Work(NamedTuple):
    """FLOP and bytes of one call, forward and gradient together."""

    flop: float
    bytes: float

    def seconds(self, flop_per_second: float = H200_FLOP_PER_SECOND, rate: float = H200_BYTES_PER_SECOND) -> float:
        """No less than this: the slower of the two limits, launches and latencies aside."""
        return max(self.flop / flop_per_second, self.bytes / rate)


def floor(queries: int, candidates: int, elements: int, banks: int, itemsize: int = 2) -> Work:
    """The least work any kernel could do."""
    latents = 4 * queries * elements + banks * candidates * elements
    return Work(4.0 * banks * queries * candidates * elements, float(latents * itemsize))


def counted_flop(queries: int, candidates: int, elements: int, banks: int) -> float:
    """Of the plan, for 16-bit latents."""
    products = 3 if queries * candidates * banks <= SMALL_LOGITS else 2
    return 2.0 * products * banks * queries * candidates * elements


def counted_bytes(queries: int, candidates: int, elements: int, banks: int, itemsize: int = 2) -> float:
    """Of the plan, through L2 and memory together."""
    latent, bank, logits = queries * elements, candidates * elements, queries * candidates
    if logits * banks <= SMALL_LOGITS:
        from contrastive_i2v.kernels.configs import slice_count

        partial = 4 * slice_count(queries, (candidates,) * banks, elements) * banks * logits  # float32
        once = 3 * latent + banks * bank  # kernel 1
        again = 2 * latent + banks * bank + latent + banks * latent  # kernel 3: F, target, banks, gradient, positives
        return float((once + again + 2 * banks * logits) * itemsize + 3 * partial)
    strips = -(-queries // min(MAX_STRIP_ROWS, max(128, (256 << 20) // (candidates * itemsize))))
    prologue = 3 * latent + latent
    products = 2 * strips * bank + latent + 2 * logits  # a bank: read twice a strip; x0; weights written and read
    epilogue = latent  # the positive's rows
    sums = 2 * 4 * latent * (banks - 1)  # float32 partial gradient, written and read
    return float((prologue + banks * (products + epilogue) + 3 * latent) * itemsize + sums)


def plan(queries: int, candidates: int, elements: int, banks: int, itemsize: int = 2) -> Work:
    """What these kernels do."""
    return Work(
        counted_flop(queries, candidates, elements, banks),
        counted_bytes(queries, candidates, elements, banks, itemsize),
    )
