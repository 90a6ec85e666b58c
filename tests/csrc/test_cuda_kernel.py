"""The CUDA kernel on a GPU: agreement, determinism, CUDA graphs, no wait for the device, limits."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from problems import eager, error, make, run, to_double

from contrastive_i2v.ops import available_backends, contrastive_diffusion_loss

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (1, [7], [33]),
    (5, [13, 6], [252]),
    (16, [16, 16], [4, 32, 32]),
    (33, [40, 35], [257]),
    (70, [61, 90], [1000]),
    (9, [5, 40, 17, 1, 2, 3, 16, 9], [96]),
    (3, [], [40]),
]


@pytest.fixture(autouse=True)
def needs_the_backend() -> None:
    why = "" if torch.cuda.is_available() else "there is no CUDA device"
    if not why and available_backends()["cuda"] != "available":
        why = f"backend 'cuda' is missing: {available_backends()['cuda']}"
    if why and os.environ.get("CI2V_REQUIRE_CUDA") == "1":
        pytest.fail(f"CI2V_REQUIRE_CUDA=1, but {why}")
    if why:
        pytest.skip(why)


def to_cuda(arguments: dict[str, Any]) -> dict[str, Any]:
    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.cuda()
        return [move(one) for one in value] if isinstance(value, list) else value

    return {name: move(value) for name, value in arguments.items()}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("options", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_float64(shape: Any, dtype: torch.dtype, options: bool, normalize: bool) -> None:
    arguments = make(*shape, dtype=dtype, options=options) | {"normalize": normalize}
    if normalize:
        arguments["temperature"] = 0.07
    out, gradient = run(to_cuda(arguments), "cuda")
    truth, expected = run(to_double(arguments), "reference")
    loss, grad = {torch.float32: (1e-6, 1e-6), torch.bfloat16: (2e-3, 4e-3), torch.float16: (2e-4, 6e-4)}[dtype]
    assert gradient.dtype == dtype
    assert error(out.mse.cpu(), truth.mse) < 1e-6
    assert error(out.loss.cpu(), truth.loss) < loss
    assert error(gradient.cpu(), expected) < grad
    assert (out.contrastive >= 0).all()
    if shape[1]:
        assert error(out.contrastive.cpu(), truth.contrastive) < 5 * loss
    if not options:
        assert error(gradient.cpu(), expected) <= 2 * error(eager(arguments)[1], expected)


def at_the_goal(batch: int) -> dict[str, Any]:
    if torch.cuda.get_device_capability()[0] < 9 and batch > 128:
        pytest.skip("256 queries need Hopper's shared memory and clusters")
    return to_cuda(make(batch, [batch, batch], [4, 32, 32], dtype=torch.bfloat16))


@pytest.mark.parametrize("batch", [16, 128, 256])
def test_two_runs_are_bitwise_equal(batch: int) -> None:
    arguments = at_the_goal(batch)
    first = run(arguments, "cuda")
    for _ in range(20):
        again = run(arguments, "cuda")
        assert torch.equal(first[0].loss, again[0].loss)
        assert torch.equal(first[0].contrastive, again[0].contrastive)
        assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("batch", [16, 128, 256])
def test_goal_sizes_agree_with_float64(batch: int) -> None:
    arguments = at_the_goal(batch)
    out, gradient = run(arguments, "cuda")
    truth, expected = run(to_double(arguments), "reference")
    assert error(out.loss, truth.loss) < 1e-3
    assert error(gradient, expected) <= 2 * error(eager(arguments)[1], expected)


@pytest.mark.parametrize("batch", [16, 128])
def test_cuda_graph_replays_on_new_data(batch: int) -> None:
    arguments = at_the_goal(batch)
    run(arguments, "cuda")  # what is asked of the device once
    prediction = arguments["prediction"].clone().requires_grad_()
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        contrastive_diffusion_loss(**arguments | {"prediction": prediction}, backend="cuda").loss.backward()
    torch.cuda.current_stream().wait_stream(stream)
    prediction.grad = None
    with torch.cuda.graph(graph):
        out = contrastive_diffusion_loss(**arguments | {"prediction": prediction}, backend="cuda")
        out.loss.backward()
    other = make(batch, [batch, batch], [4, 32, 32], dtype=torch.bfloat16, seed=1)
    with torch.no_grad():
        prediction.copy_(other["prediction"])
    for _ in range(3):
        graph.replay()
    expected, gradient = run(arguments | {"prediction": prediction.detach()}, "cuda")
    assert torch.equal(out.loss, expected.loss)
    assert prediction.grad is not None
    assert torch.equal(prediction.grad, gradient)


def test_never_waits_for_the_device() -> None:
    arguments = to_cuda(make(16, [16], [256], options=True)) | {"temperature": torch.tensor(2.0, device="cuda")}
    run(arguments, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(arguments, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_streams_at_once() -> None:
    """The barrier's memory belongs to a launch: grids that run side by side do not meet in it."""
    arguments = to_cuda(make(5, [13], [252]))
    expected = run(arguments, "cuda")[1]
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in range(4)], []
    for n in range(40):
        with torch.cuda.stream(streams[n % 4]):
            found.append(run(arguments, "cuda")[1])
    torch.cuda.synchronize()
    assert all(torch.equal(one, expected) for one in found)


def test_bad_values_on_the_device_make_the_loss_nan() -> None:
    arguments = to_cuda(make(3, [5], [40]))
    for wrong in (5, -2):
        rows = [torch.tensor([0, wrong, 1], device="cuda")]
        assert contrastive_diffusion_loss(**arguments | {"positives": rows}, backend="cuda").loss.isnan()
    cold = torch.tensor(0.0, device="cuda")
    assert contrastive_diffusion_loss(**arguments | {"temperature": cold}, backend="cuda").loss.isnan()


def test_what_does_not_fit_is_an_error_with_a_way_out() -> None:
    arguments = to_cuda(make(2, [20_000], [64]))
    with pytest.raises(RuntimeError, match=r"backend='cuda' does not fit 2 queries .*use backend='triton'"):
        contrastive_diffusion_loss(**arguments, backend="cuda")
