"""Memory and FLOP of a network too large for the machine at hand: tensors have shapes but no contents.

Every operation of a forward and backward pass is carried out on `FakeTensor`s, and two dispatch modes watch: torch's
own FLOP counter, and `LiveBytes`, which knows of every tensor's storage when it begins and when it ends. Fused
attention is counted as such, so its matrix of weights takes no memory. Not counted: what convolutions and matrix
products use for themselves, the allocator's rounding, and elementwise arithmetic's FLOP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.video_networks import Batch, Network, Size
from contrastive_i2v.training.live_bytes import LiveBytes


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one training step and one forward pass without gradients, a clip each. Bytes."""

    parameters: int
    trained: int
    weights: int
    gradients: int
    moments: int
    """AdamW's two, in float32."""
    kept: int
    """What the forward pass keeps for the backward pass."""
    training_peak: int
    """The most at any time of a step: weights, gradients, moments, and what is alive beside them."""
    sampling_peak: int
    """The most at any time of a forward pass without gradients, weights included."""
    forward_flop: int
    step_flop: int
    """Forward and backward; with gradient checkpointing, what is computed twice counts twice."""


def count(build: Callable[[Size], Network], size: Size, side: int, *, checkpointing: bool) -> Counts | None:
    """Counts of a network in float32 for latents of `side` x `side`; None where it is to checkpoint and can't."""
    with FakeTensorMode():
        network = build(size)
        if checkpointing and not network.checkpoint():
            return None
        batch = Batch.random(size, side)
        parameters = list(network.module.parameters())
        memory = LiveBytes()
        for tensor in (*parameters, *network.module.buffers()):
            memory.add(tensor)
        weights = memory.live
        with memory, torch.no_grad():
            network.predict(batch)
        sampling_peak = memory.peak
        memory.peak = memory.live
        before = memory.live
        with memory:
            loss = network.loss(batch)
            kept = memory.live - before
            loss.backward()
        peak = memory.peak
        # apart from the memory, as torch's counter keeps tensors alive
        with _flop() as forward, torch.no_grad():
            network.predict(batch)
        with _flop() as step:
            network.loss(batch).backward()
        trained = sum(part.numel() for part in network.trained)
        moments = 8 * trained
        return Counts(
            parameters=sum(part.numel() for part in parameters),
            trained=trained,
            weights=weights,
            gradients=sum(part.grad.nbytes for part in network.trained if part.grad is not None),
            moments=moments,
            kept=kept,
            training_peak=peak + moments,
            sampling_peak=sampling_peak,
            forward_flop=forward.get_total_flops(),
            step_flop=step.get_total_flops(),
        )


def _flop() -> FlopCounterMode:
    """torch's counter, taught the fused attention of the CPU, the device that the tensors seem to be on."""
    aten = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    fused: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=fused)
