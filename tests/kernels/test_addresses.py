"""Offsets past 2^31 elements with little memory: a bank of 4.3 GB of addresses, of which only the rows that a test
writes have pages behind them, and only the one program that reads them is run."""

from __future__ import annotations

import pytest
import torch
from calls import DEVICE
from contrastive_i2v.kernels.configs import Config
from contrastive_i2v.kernels.gradient import gradient_kernel
from contrastive_i2v.kernels.partial_logits import partial_logits_kernel
from contrastive_i2v.kernels.rows import INTERPRETED
from contrastive_i2v.kernels.scaled_exp import scaled_exp_kernel

ELEMENTS = 1 << 16
ROWS = (1 << 15) + 3  # ROWS * ELEMENTS > 2^31
LAST = ROWS - 1
tl_dtype = pytest.importorskip("triton.language").bfloat16
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not INTERPRETED.value, reason="picks its program in the interpreter; see test_gpu.py"),
]


@pytest.fixture(scope="module")
def bank() -> torch.Tensor:
    """[ROWS, ELEMENTS]: zeros but for the first 64 elements of the last row."""
    try:
        # Untouched pages read as zeros. As many rows lie before the bank, where an offset that wraps would point.
        bank = torch.empty(2 * ROWS, ELEMENTS, dtype=torch.bfloat16)[ROWS:]
    except RuntimeError:
        pytest.skip("this machine does not give out addresses that it has no memory for")
    bank[LAST, :64] = torch.arange(64)
    return bank


@pytest.fixture
def run_only(monkeypatch: pytest.MonkeyPatch):
    """run_only(kernel, number, along): the launch runs that one program of a grid as large as can be."""
    from triton.language import int32
    from triton.runtime import interpreter

    def choose(number: int, along: int = 0) -> None:
        import numpy as np

        def scalar(value: int) -> object:
            return interpreter.TensorHandle(np.array([value], dtype=np.int32), int32)

        builder = interpreter.interpreter_builder
        monkeypatch.setattr(builder, "create_get_program_id", lambda axis: scalar(number if axis == along else 0))
        monkeypatch.setattr(builder, "create_get_num_programs", lambda axis: scalar(1 << 20))

    return choose


def test_the_last_logits_of_a_strip(bank: torch.Tensor, run_only) -> None:
    c = Config(16, 128, 4096, 4, 1)
    padded = -(-ROWS // c.block_n) * c.block_n
    tiles = padded // c.block_n
    x0 = torch.zeros(16, ELEMENTS, dtype=torch.bfloat16)
    x0[:, :64] = 1
    weights, match = torch.zeros(16, padded, dtype=torch.bfloat16), torch.zeros(16)
    statistics = torch.zeros(3, tiles, 16)
    run_only(tiles - 1)
    scaled_exp_kernel[(1,)](
        x0, torch.ones(16), bank, None, torch.full((16,), LAST), None, None, None, weights, match, statistics, 1.0,
        0, 16, 16, ELEMENTS, ROWS, padded, NORMALIZE=False, EVEN=True, DOT_DTYPE=tl_dtype, STEP=64.0, OFFSET=32.0,
        BLOCK_M=16, BLOCK_N=c.block_n, BLOCK_K=c.block_k, GROUP=1,
    )  # fmt: skip
    assert torch.equal(match, torch.full((16,), 64 * 63 / 2))


def test_the_gradient_of_the_last_candidate(bank: torch.Tensor, run_only) -> None:
    padded = -(-ROWS // 256) * 256
    weights = torch.zeros(16, padded, dtype=torch.bfloat16)
    weights[:, LAST] = 2
    out = torch.zeros(16, ELEMENTS)
    factors = torch.stack([torch.ones(16), torch.full((16,), 3.0)])  # 2 z_last - 3 z_positive, the same row
    run_only(0)
    gradient_kernel[(1,)](
        weights, bank, torch.full((16,), LAST), factors, None, out, None, None, None, None, None, None, None, 0, 16, 16,
        16, ELEMENTS, ROWS, padded, FIRST=True, LAST=False, NORMALIZE=False, EVEN=True, DOT_DTYPE=tl_dtype,
        BLOCK_M=16, BLOCK_N=64, BLOCK_K=256, GROUP=1,
    )  # fmt: skip
    assert torch.equal(out[:, :64], -bank[LAST, :64].float().expand(16, 64))


def test_the_last_partial_logits(bank: torch.Tensor, run_only) -> None:
    """The rows of the bank and of the partial sums; two slices, of which one has all."""
    blocks = -(-ROWS // 128)
    columns = blocks * 128
    latents = torch.zeros(16, ELEMENTS, dtype=torch.bfloat16)
    latents[:, :64] = 1
    partial = torch.zeros(1, 16, columns)
    run_only(blocks - 1, along=1)
    partial_logits_kernel[(1, 1, 1)](
        latents, latents, latents, torch.ones(16), torch.ones(16), bank, bank, partial, torch.zeros(2, 1, 16),
        torch.zeros(1, columns), 16, ELEMENTS, ROWS, 1, columns, blocks, ELEMENTS, BANKS=1, NORMALIZE=False,
        TWO_PRODUCTS=True, BLOCK_M=16, BLOCK_N=128, BLOCK_K=4096,
    )  # fmt: skip
    assert torch.equal(partial[0, :, LAST], torch.full((16,), 2 * 64 * 63 / 2))
    assert DEVICE == "cpu"
