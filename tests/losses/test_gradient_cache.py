"""Micro-batches with the gradient cache against one graph over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contrastive_i2v.losses import cached_backward

D = 12


def build(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[Tensor], Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, D)).to(dtype)
    return network, list(torch.randn(7, D, dtype=dtype).split([2, 1, 4])), torch.randn(7, D, dtype=dtype)


def contrast(bank: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda prediction: nn.functional.cross_entropy(prediction.to(bank.dtype) @ bank.T, torch.arange(len(bank)))


def gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in network.parameters()]


def one_graph(forward: Callable[[Any], Tensor], batches: list[Any], loss: Callable[[Tensor], Tensor]) -> Tensor:
    value = loss(torch.cat([forward(batch) for batch in batches]))
    value.backward()
    return value.detach()


def test_gradients_are_those_of_the_whole_batch_with_dropout_and_noise() -> None:
    network, batches, bank = build()
    noise = torch.Generator()

    def forward(batch: Tensor) -> Tensor:
        return network(batch + torch.randn(batch.shape, generator=noise, dtype=batch.dtype)) * torch.rand(())

    def loss(prediction: Tensor) -> Tensor:
        return contrast(bank)(prediction) + torch.rand(())  # the loss draws, too

    results = []
    for step in (one_graph, cached_backward):
        network.zero_grad()
        torch.manual_seed(3)
        noise.manual_seed(4)
        more = {"generators": [noise]} if step is cached_backward else {}
        value = step(forward, batches, loss, **more)  # type: ignore[operator]
        results.append((value, gradients(network), torch.rand(4), torch.rand(4, generator=noise)))
    expected, cached = results
    assert torch.equal(cached[0], expected[0]) and not cached[0].requires_grad
    for mine, theirs in zip(cached[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    assert torch.equal(cached[2], expected[2]) and torch.equal(cached[3], expected[3])  # the streams go on


def test_a_private_generator_that_is_not_named_spoils_it() -> None:
    """Shows that the test above can fail."""
    network, batches, bank = build()
    noise = torch.Generator().manual_seed(4)

    def forward(batch: Tensor) -> Tensor:
        return network.eval()(batch + torch.randn(batch.shape, generator=noise, dtype=batch.dtype))

    one_graph(forward, batches, contrast(bank))
    expected = gradients(network)
    network.zero_grad()
    noise.manual_seed(4)
    cached_backward(forward, batches, contrast(bank))
    assert not torch.allclose(gradients(network)[0], expected[0], rtol=1e-3)


def test_gradients_accumulate_and_the_losss_own_parameters_get_theirs() -> None:
    network, batches, bank = build()
    network.eval()
    scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def loss(prediction: Tensor) -> Tensor:
        return contrast(bank)(prediction * scale)

    one_graph(network, batches, loss)
    expected = [*gradients(network), scale.grad.clone()]
    for _ in range(2):
        cached_backward(network, batches, loss)
    for mine, theirs in zip([*gradients(network), scale.grad], expected, strict=True):
        torch.testing.assert_close(mine, 3 * theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_inside_and_around(inside: bool) -> None:
    network, batches, bank = build(torch.float32)

    def forward(batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            return network(batch)

    results = []
    for step in (one_graph, cached_backward):
        network.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
            value = step(forward if inside else network, batches, contrast(bank))
        results.append((value, gradients(network)))
    assert torch.equal(results[0][0], results[1][0])
    for mine, theirs in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-3)
        assert theirs.abs().max() > 0.01


def test_a_scaler_keeps_float16_gradients_from_underflowing() -> None:
    network, batches, bank = build(torch.float32)
    network.eval()

    def forward(batch: Tensor) -> Tensor:
        return network(batch).half()

    def loss(prediction: Tensor) -> Tensor:
        return contrast(bank)(prediction) * 1e-7

    one_graph(network, batches, loss)
    expected = gradients(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer.zero_grad()
    value = cached_backward(forward, batches, loss, scaler=scaler)
    assert value < 1e-5  # unscaled
    scaler.unscale_(optimizer)
    for mine, theirs in zip(gradients(network), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-3 * float(theirs.abs().max()))


def test_only_the_last_micro_batch_syncs() -> None:
    network, batches, bank = build()
    depth, seen = [0], []

    class NoSync:
        def __enter__(self) -> None:
            depth[0] += 1

        def __exit__(self, *_: object) -> None:
            depth[0] -= 1

    def forward(batch: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.append((len(batch), depth[0]))
        return network(batch)

    cached_backward(forward, batches, contrast(bank), no_sync=NoSync)
    assert seen == [(2, 1), (1, 1), (4, 0)]


def test_no_more_than_one_micro_batch_keeps_its_activations() -> None:
    network, batches, bank = build()
    alive, most = [0], [0]

    class Activation(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            alive[0] += ctx.needs_input_grad[0] and torch.is_grad_enabled() is not None
            most[0] = max(most[0], alive[0])
            return value.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            alive[0] -= 1
            return grad

    def forward(batch: Tensor) -> Tensor:
        hidden = network(batch)
        return Activation.apply(hidden) if torch.is_grad_enabled() else hidden

    cached_backward(forward, batches, contrast(bank))
    assert (alive, most) == ([0], [1])


def test_bad_calls_are_refused() -> None:
    network, batches, bank = build()
    loss = contrast(bank)
    with pytest.raises(ValueError, match="micro_batches is empty"):
        cached_backward(network, [], loss)
    with pytest.raises(ValueError, match="forward returned tuple: expected one tensor"):
        cached_backward(lambda batch: (network(batch),), batches, loss)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"loss returned \[7, 12\] with requires_grad=True: expected a scalar"):
        cached_backward(network, batches, lambda prediction: prediction)
    with pytest.raises(ValueError, match=r"loss returned \[\] with requires_grad=False"):
        cached_backward(network, batches, lambda prediction: prediction.detach().sum())
    own = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="no gradient with respect to the predictions"):
        cached_backward(network, batches, lambda prediction: own * 2)
    sizes = iter([2, 1, 4, 2, 1, 3])
    with pytest.raises(ValueError, match=r"micro-batch 2 \[3, 12\] in the second pass, \[4, 12\] in the first"):
        cached_backward(lambda batch: network(batch)[: next(sizes)], batches, loss)
