"""What only a GPU can show. Skips without one, unless CI2V_REQUIRE_CUDA=1, when it fails."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from calls import positional, run, to_device
from contrastive_i2v.kernels import diffusion_loss, dispatch, why_unavailable
from problems import error, make, to_double
from problems import run as run_op


@pytest.fixture(autouse=True)
def needs_cuda() -> None:
    if torch.cuda.is_available():
        return
    if os.environ.get("CI2V_REQUIRE_CUDA") == "1":
        pytest.fail("CI2V_REQUIRE_CUDA=1, but torch sees no GPU")
    pytest.skip("needs a GPU")


# one query; ragged; the goals' sizes of the small regime; past it, whole tiles and ragged ones
SHAPES = [(1, [7], 33), (33, [40, 35], 257), (16, [16, 16], 4096), (256, [256, 256], 4096), (700, [1100, 513], 4000)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_float64_and_itself(shape: Any, normalize: bool, dtype: Any) -> None:
    queries, candidates, elements = shape
    arguments = make(queries, candidates, [elements], dtype=dtype, options=True) | {"normalize": normalize}
    if normalize:
        arguments["temperature"] = 0.07
    small = queries * sum(candidates) <= dispatch.MAX_SMALL_LOGITS
    truth, expected = run_op(to_double(arguments), "reference")
    loss, mse, contrastive, gradient = run(arguments)
    unit = {torch.float32: 3e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    assert error(mse, truth.mse) < 1e-6
    assert error(contrastive, truth.contrastive) < (3e-6 if small else unit / 4)
    assert error(gradient, expected) < unit
    for one, other in zip((loss, mse, contrastive, gradient), run(arguments), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", [64, 1024])
def test_graph_replays_with_new_values_and_nothing_waits_for_the_device(size: int) -> None:
    a = to_device(make(size, [size, size], [512], dtype=torch.bfloat16) | {"temperature": torch.tensor(20.0)})
    b = to_device(make(size, [size, size], [512], dtype=torch.bfloat16, seed=1) | {"temperature": torch.tensor(9.0)})
    expected = diffusion_loss(*positional(b))  # also compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        diffusion_loss(*positional(a))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = diffusion_loss(*positional(a))
    for name, value in b.items():
        for to, source in zip(*(x if isinstance(x, list) else [x] for x in (a[name], value)), strict=True):
            to.copy_(source)
    graph.replay()
    for one, other in zip(out, expected, strict=True):
        assert torch.equal(one, other)


def test_memory_is_bounded_by_a_strip() -> None:
    """Logits of both banks would be 1 GiB in bfloat16 at this size."""
    size, elements = 16384, 4096
    latents = [torch.randn(size, elements, device="cuda", dtype=torch.bfloat16) for _ in range(5)]
    rows = [torch.ones(size, device="cuda") for _ in range(2)]
    arguments = (*latents[:3], *rows, latents[3:], [], None, 64.0, [0.5, 0.5], None, None, None, [], False, True)
    diffusion_loss(*arguments)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = diffusion_loss(*arguments)
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before - out[3].numel() * 2
    assert out[0].isfinite()
    assert extra <= 0.45 * 2**30


def test_a_bank_past_two_to_the_31_elements() -> None:
    rows, elements = (1 << 15) + 3, 1 << 16
    bank = torch.zeros(rows, elements, device="cuda", dtype=torch.bfloat16)
    bank[-1] = torch.randn(elements, device="cuda")
    latents = [torch.randn(32, elements, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    coefficients = [torch.ones(32, device="cuda") for _ in range(2)]
    positives = torch.full((32,), rows - 1, device="cuda")
    rest = (256.0, [1.0], None, None, None, [], False, True)
    far = diffusion_loss(*latents, *coefficients, [bank], [positives], None, *rest)
    # every other row is zero, so its logit is too: rows - 1 times exp(0) against the positive
    x0 = latents[0].double() + latents[1].double()
    logit = (x0 @ bank[-1].double()) / 256
    entropy = torch.nn.functional.softplus(torch.log(torch.tensor(rows - 1.0)).cuda() - logit).mean()
    assert error(far[2][0].cpu(), entropy.cpu()) < 1e-3
    assert far[3].isfinite().all()


def test_it_says_it_is_available() -> None:
    assert why_unavailable() == ""
