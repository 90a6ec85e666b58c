"""Weights that wait in the host's memory and come to the device when something is computed with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.models.autoencoder import ONLOAD_DEVICE
from contrastive_i2v.models.quantization import repeated_blocks
from contrastive_i2v.system import System

Level: TypeAlias = Literal["block", "leaf"]


def offload_encoders(system: System, device: torch.device, *, layers: bool = False) -> Callable[[], None]:
    """Keep every part but the network on the CPU until it encodes or decodes on `device`, and leave it there, or with
    `layers` bring one layer's weights at a time; returns what takes all of them back.

    Raises InputError for a system that was opened with offload."""
    if system.offloaded:
        raise InputError(
            f"offload={system.offloaded}: is for sampling; expected the model without it (training and encoding have "
            "offload_blocks and offload_encoders)"
        )
    parts = [part for part in system.parts().values() if part is not system.network]
    if not layers:
        return offload_parts(parts, device)
    for part in parts:
        _offload_group(part, device, "leaf")
    return lambda: None


def offload_parts(parts: Collection[nn.Module], device: torch.device) -> Callable[[], None]:
    """Keep modules on the CPU until each is called, which leaves it on `device`; returns what takes all of them back.

    By accelerate's hooks, which `encode` and `decode` of diffusers' autoencoders call as well.
    """
    from accelerate import cpu_offload_with_hook

    hooks: list[Any] = [cpu_offload_with_hook(part, device)[1] for part in parts]

    def take_back() -> None:
        for hook in hooks:
            hook.offload()

    return take_back


class OffloadedBlocks:
    """Block-wise offloading for training: of the frozen weights of a network's repeated blocks, one block's are on the
    device at a time. The rest of the network is moved there, and stays.

    A block's weights come when its forward pass begins, and go when another block's come, so they are still there
    in the backward pass of a block that gradient checkpointing has just computed again; without checkpointing they
    would not be. Copies are on the stream that computes: a block of a video transformer computes for longer than
    it is copied.

    Args:
        network: in the host's memory.
        device: where it computes.
        trained: the parameters that get gradients; they stay on the device.

    Raises:
        InputError: a network without repeated blocks.
    """

    def __init__(self, network: nn.Module, device: torch.device, trained: Collection[nn.Parameter]) -> None:
        self.device, self.loaded = device, ""
        kept = {id(parameter) for parameter in trained}
        self.host: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
        for name, block in repeated_blocks(network).items():
            frozen = [parameter for parameter in block.parameters() if id(parameter) not in kept]
            self.host[name] = [(parameter, self._pinned(parameter.data)) for parameter in frozen]
            block.register_forward_pre_hook(partial(self._load, name))
        for name in self.host:
            self._put_back(name)
        _move(network, device, but=(parameter for held in self.host.values() for parameter, _ in held))

    def _pinned(self, tensor: Tensor) -> Tensor:
        """Page-locked where a GPU copies from it."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _load(self, name: str, *_: Any) -> None:
        if name == self.loaded:
            return
        if self.loaded:
            self._put_back(self.loaded)
        self.loaded = name
        for parameter, host in self.host[name]:
            parameter.data = self._copied(host)

    def _put_back(self, name: str) -> None:
        for parameter, host in self.host[name]:
            parameter.data = host

    def _copied(self, host: Tensor) -> Tensor:
        return host.to(self.device, non_blocking=True)


def offload_groups(system: System, device: torch.device, *, level: Level = "block", stream: bool = False) -> None:
    """Group offloading for sampling, by diffusers: weights come to `device` block by block, or layer by layer, and go.

    Of the network those models whose repeated blocks diffusers knows; what else it holds stays on the device. The
    other parts come and go layer by layer, since encode and decode are no forward passes of a whole one.

    Args:
        stream: copy the next group while this one computes, for the memory of another; CUDA alone.

    Raises:
        InputError: a network without repeated blocks.
    """
    repeated_blocks(system.network)  # are there any?
    for part in system.parts().values():
        if part is not system.network:
            _offload_group(part, device, "leaf", stream=stream)
    models = [module for module in system.network.modules() if getattr(module, "_repeated_blocks", None)]
    for model in models:
        _offload_group(model, device, level, stream=stream)
    _move(
        system.network, device, but=(tensor for model in models for tensor in (*model.parameters(), *model.buffers()))
    )
    system.offloaded = level


def _offload_group(module: nn.Module, device: torch.device, level: Level, *, stream: bool = False) -> None:
    from diffusers.hooks import apply_group_offloading

    kind: dict[str, Any] = {"offload_type": f"{level}_level"}
    if level == "block":
        kind["num_blocks_per_group"] = 1
    apply_group_offloading(nn.Module.to(module, "cpu"), device, use_stream=stream, **kind)
    setattr(module, ONLOAD_DEVICE, device)


def _move(network: nn.Module, device: torch.device, *, but: Iterable[Tensor]) -> None:
    """Put a network's tensors on a device, in place, some of them left where they are."""
    left = {id(tensor) for tensor in but}
    for tensor in (*network.parameters(), *network.buffers()):
        if id(tensor) not in left:
            tensor.data = tensor.data.to(device)
