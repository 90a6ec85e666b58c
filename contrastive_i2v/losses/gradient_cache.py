"""A contrastive batch larger than memory: the exact gradient of a loss over all micro-batches at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def cached_backward(
    forward: Callable[[T], Tensor],
    micro_batches: Sequence[T],
    loss: Callable[[Tensor], Tensor],
    *,
    scaler: torch.amp.GradScaler | None = None,
    no_sync: Callable[[], AbstractContextManager[object]] | None = None,
    generators: Sequence[torch.Generator] = (),
) -> Tensor:
    """Add to the parameters' `.grad` what `loss(cat(map(forward, micro_batches))).backward()` would, with the
    activations of one micro-batch in memory.

        F_m   = forward(b_m)                                        without a graph
        u_m   = d loss(F_1, ..., F_M) / d F_m                       small: predictions alone
        grad += sum_m (d F_m / d parameters)^T u_m                  forward again, micro-batch by micro-batch

    Plain gradient accumulation would contrast each micro-batch with itself alone. This costs one forward pass
    more. The second pass draws the random numbers of the first (dropout, noise): the generators of the CPU and
    of every CUDA device, and those in `generators`, are put back before each micro-batch; afterwards they are
    where one pass would have left them.

        def forward(batch):
            with torch.autocast("cuda", torch.bfloat16):
                return ddp(batch.noisy_latents, batch.timesteps)

        value = cached_backward(forward, batches, lambda prediction: loss(prediction, ...).loss, no_sync=ddp.no_sync)
        optimizer.step()

    Autocast works around the call as well as in `forward`. Layers that update themselves in the forward pass
    (BatchNorm's running statistics) do so twice. Parameters of the loss itself get their gradient, too; keep them
    outside of a `DistributedDataParallel` module.

    Args:
        forward: micro-batch -> [b, ...] prediction, a function of the micro-batch, the parameters and the
            generators; b may differ.
        micro_batches: at least one.
        loss: [sum of b, ...] predictions in order -> scalar. Called once.
        scaler: scales the loss, which a float16 prediction's gradient needs; then use `scaler.step` as ever.
        no_sync: `DistributedDataParallel.no_sync`: gradients are all-reduced once, in the last micro-batch.
        generators: others that `forward` draws from.

    Returns:
        The loss, detached and unscaled.

    Raises:
        ValueError: no micro-batches, a prediction that is no tensor or changes its shape between the passes, or
            a loss that does not depend on the predictions.

    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021,
    arXiv:2101.06983.
    """
    if len(micro_batches) == 0:
        raise ValueError("micro_batches is empty: expected at least one")
    states, parts = [], []
    with torch.no_grad():
        for batch in micro_batches:
            states.append(_random_state(generators))
            parts.append(forward(batch))
            if not isinstance(parts[-1], Tensor) or parts[-1].dim() == 0:
                raise ValueError(f"forward returned {type(parts[-1]).__name__}: expected one tensor [b, ...]")
    # Autocast keeps the weights it cast, and those of the first pass have no graph.
    torch.clear_autocast_cache()

    predictions = torch.cat(parts).requires_grad_()
    with torch.enable_grad():
        value = loss(predictions)
        if value.numel() != 1 or not value.requires_grad:
            raise ValueError(
                f"loss returned {list(value.shape)} with requires_grad={value.requires_grad}: expected a scalar that "
                "depends on the predictions"
            )
        torch.autograd.backward(value if scaler is None else scaler.scale(value))
    if predictions.grad is None:
        raise ValueError("loss has no gradient with respect to the predictions: expected it to depend on them")
    gradients = torch.split(predictions.grad, [len(part) for part in parts])

    last = len(micro_batches) - 1
    with _restored_afterwards(generators):
        for number, (batch, state, part) in enumerate(zip(micro_batches, states, gradients, strict=True)):
            _set_random_state(state, generators)
            unsynced = no_sync() if no_sync is not None and number < last else nullcontext()
            with unsynced, torch.enable_grad():
                prediction = forward(batch)
                if prediction.shape != part.shape:
                    raise ValueError(
                        f"forward gave micro-batch {number} {list(prediction.shape)} in the second pass, "
                        f"{list(part.shape)} in the first: expected a function of its argument"
                    )
                torch.autograd.backward(prediction, part)
    return value.detach()


_State = tuple[Tensor, list[Tensor], list[Tensor]]


def _random_state(generators: Sequence[torch.Generator]) -> _State:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), cuda, [generator.get_state() for generator in generators]


def _set_random_state(state: _State, generators: Sequence[torch.Generator]) -> None:
    cpu, cuda, others = state
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    for generator, other in zip(generators, others, strict=True):
        generator.set_state(other)


@contextmanager
def _restored_afterwards(generators: Sequence[torch.Generator]) -> Iterator[None]:
    state = _random_state(generators)
    try:
        yield
    finally:
        _set_random_state(state, generators)
