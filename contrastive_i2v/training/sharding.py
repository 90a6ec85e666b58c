"""A network's parameters shared among the processes (FSDP2): each holds its part of them, of their gradients, moments
and averages, and has a block whole only while it computes with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from contrastive_i2v.errors import InputError
from contrastive_i2v.training.config import TrainConfig


def check_sharding(config: TrainConfig, ranks: int) -> None:
    """Raises InputError for what doesn't go with `config.shard`."""
    previews = config.preview.every and config.data.validation_path is not None
    refused = {
        "one process has nobody to share with; expected several": ranks == 1,
        "one process alone makes previews; expected preview.every 0": previews,
        "there are no rollouts of a part; expected no own_samples": config.own_samples.on,
        "adapters are small; expected lora.rank 0": config.lora.rank,
        "the loss scale of fp16 would differ between processes; expected bf16 or no": config.mixed_precision == "fp16",
    }
    untried = ("compile", "channels_last", "ema_on_cpu", "gradient_cache")
    refused |= {f"it hasn't been tried with {name}; expected one of them": getattr(config, name) for name in untried}
    for reason in (reason for reason, holds in refused.items() if holds):
        raise InputError(f"shard: {reason}")


def shard(network: nn.Module, device: torch.device, ranks: int) -> None:
    """Leave this rank its part of every parameter, in place.

    Source: torch's `fully_shard`, after ZeRO's third stage (Rajbhandari et al., 2019, arXiv:1910.02054, section 5).
    """
    mesh = init_device_mesh(device.type, (ranks,))
    for block in list(_blocks(network)):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def make_whole(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put whole parameters into a sharded network, so that it can be saved like any other; it computes no more."""
    for name in [name for name, _ in network.named_parameters()]:
        owner, _, leaf = name.rpartition(".")
        network.get_submodule(owner)._parameters[leaf] = nn.Parameter(weights[name], requires_grad=False)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.__class__ = type(module).__mro__[2]  # a saved config names its class


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists of modules."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)
