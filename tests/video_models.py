"""Tiny video systems with weights that all have a say, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from contrastive_i2v.models import load_system
from contrastive_i2v.models.consisti2v import ConsistI2V, ConsistI2VConfig
from contrastive_i2v.models.emu_video import EmuVideo, EmuVideoConfig

TEXT_WIDTH = 16
"""Of the tiny folders' text encoder."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stir(module: nn.Module, *, by: float = 0.2, seed: int = 0) -> None:
    """Add random numbers to every parameter, so that none is zero, one, or without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def as_rows(frames: Tensor) -> Tensor:
    """[B, T, C, h, w] -> [B T, C, h, w] in the memory order that video networks use; another has other last bits."""
    return frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def image_unet(folder: Path) -> Any:
    """The UNet of a folder, as diffusers has it: the image model that video models start from."""
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()


def consisti2v(folder: Path, *, frames: int = 4, stirred: bool = False, **options: Any) -> ConsistI2V:
    """A ConsistI2V on the image model of a folder."""
    system = load_system(folder, ConsistI2VConfig(frames=frames, **options), device="cpu")
    assert isinstance(system, ConsistI2V)
    if stirred:
        stir(system.temporal)
        stir(system.unet.class_embedding)
        system.constrain()
    return system


def emu_video(folder: Path, *, frames: int = 4, stirred: bool = False, **options: Any) -> EmuVideo:
    """An Emu Video on the image model of a folder whose noise it can take, as a video model."""
    options = {"task": "video", "zero_terminal_snr": False, **options}
    system = load_system(folder, EmuVideoConfig(frames=frames, **options), device="cpu")
    assert isinstance(system, EmuVideo)
    if stirred:
        stir(system.temporal)
    return system


def zero_snr_scheduler() -> Any:
    """A scheduler without signal at its last timestep, v prediction and trailing timesteps."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def told(system: Any, size: int, *, seed: int = 0) -> dict[str, Tensor]:
    """The condition of `size` random given frames and texts."""
    shape = (size, len(system.window.given), system.codec.channels, 8, 8)
    text = {"prompt_embeds": randn(size, 12, TEXT_WIDTH, seed=seed + 1)}
    condition: dict[str, Tensor] = system.condition(
        randn(*shape, seed=seed + 2), text, noise=randn(*shape, seed=seed + 3)
    )
    return condition


def gradients(system: Any, *, size: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Of the mean square of a prediction at random inputs, by the parameters' names."""
    count = len(system.window.generated)
    noisy = randn(size, count, 4, 8, 8, seed=seed)
    timesteps = torch.arange(size) * 300 + 50
    system.network.zero_grad()
    system.network(noisy, timesteps, **told(system, size, seed=seed)).square().mean().backward()
    return {name: value.grad.clone() for name, value in system.network.named_parameters() if value.grad is not None}


def check_checkpointing(system: Any) -> None:
    """Gradient checkpointing is on in every layer that lies outside the UNet's own, and changes no gradient."""
    expected = gradients(system)
    system.network.enable_gradient_checkpointing()
    system.network.train()
    actual = gradients(system)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-4, atol=1e-6, msg=lambda why, name=name: f"{name}: {why}"
        )


def check_compiles(system: Any, backend: str) -> None:
    """torch.compile takes the network whole, without a graph break: the same predictions and gradients."""
    torch._dynamo.reset()
    network = system.network
    size, count = 2, len(system.window.generated)
    noisy, timesteps, condition = randn(size, count, 4, 8, 8), torch.tensor([9, 700]), told(system, size)
    expected = network(noisy, timesteps, **condition)
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    actual = compiled(noisy, timesteps, **condition)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    if backend != "eager":
        actual.square().mean().backward()
        assert all(bool(value.grad.isfinite().all()) for value in network.parameters() if value.grad is not None)
