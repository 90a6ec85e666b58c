"""Named starting points: configs that the command line then overrides. The main forms of the loss, the video systems,
and each of them scaled to the packaged tiny model. A recipe of several stages is several recipes, STAGED/NAME, of which
each starts from the model of one before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.models.consisti2v import ConsistI2VConfig
from contrastive_i2v.models.emu_video import EmuVideoConfig
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.models.ltx_video import LTXVideoConfig
from contrastive_i2v.models.wan import WanConfig
from contrastive_i2v.training.config import (
    DataConfig,
    LossConfig,
    OptimizerConfig,
    PreviewConfig,
    TimestepsConfig,
    TrainConfig,
    ValidationConfig,
)
from contrastive_i2v.training.forms import FORMS


def recipe(form: str) -> TrainConfig:
    """The published size of training with a form of the loss."""
    return FORMS[form].apply(TrainConfig(output=Path("runs") / form))


def tiny(config: TrainConfig) -> TrainConfig:
    """Scale a recipe to the packaged tiny model and 64x64 clips on a CPU."""
    return replace(
        config,
        model="tiny",
        steps=200,
        checkpoint_every=100,
        ema_decay=0.98,
        data=DataConfig(resolution=64, frames=FramesConfig(offset_std=0.0, windows_per_clip=8)),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=20),
        preview=PreviewConfig(every=100),
        validation=ValidationConfig(every=100, clips=32),
    )


NOISE_AT_250 = 0.7
"""sqrt((1 - abar) / abar) of Stable Diffusion's noise schedule at timestep 250: the noise on keyframes in training."""


def consisti2v() -> TrainConfig:
    """ConsistI2V as published. The contrastive term is an option here as everywhere: --loss.target-weight 0.2."""
    return TrainConfig(
        output=Path("runs/consisti2v"),
        model="stabilityai/stable-diffusion-2-1-base",
        system=ConsistI2VConfig(),
        steps=170_000,
        batch_size=3,
        data=DataConfig(frames=FramesConfig(frame_rate=25.0, max_offset=5)),
        optimizer=OptimizerConfig(learning_rate=5e-5, schedule="constant", max_grad_norm=0.5),
        loss=LossConfig(target_weight=0.0),
    )


def emu_video(root: str = "runs/emu-video") -> dict[str, TrainConfig]:
    """Emu Video's stages: v prediction and zero terminal SNR on images, low resolution, high resolution, the fine-tune
    on the best clips, and the interpolation model, which starts from high."""

    def stage(name: str, task: str, after: str | None, steps: int, resolution: int, rate: float) -> TrainConfig:
        return TrainConfig(
            output=Path(root) / name,
            model=f"{root}/{after}" if after else "stable-diffusion-v1-5/stable-diffusion-v1-5",
            system=EmuVideoConfig(task=task),  # type: ignore[arg-type]
            steps=steps,
            batch_size=4,
            data=DataConfig(resolution=resolution, frames=FramesConfig(frame_rate=rate, offset_std=0.0)),
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000),
            loss=LossConfig(target_weight=0.0),
        )

    tune = stage("fine-tune", "video", "high", 4000, 512, 4.0)
    between = stage("interpolation", "interpolation", "high", 20_000, 512, 16.0)
    return {
        "image": stage("image", "image", None, 20_000, 256, 8.0),
        "low": stage("low", "video", "image", 70_000, 256, 8.0),
        "high": stage("high", "video", "low", 15_000, 512, 4.0),
        "fine-tune": replace(
            tune, data=replace(tune.data, keep=0.1), optimizer=replace(tune.optimizer, learning_rate=2.5e-5)
        ),
        "interpolation": replace(between, condition_noise=NOISE_AT_250),
    }


def ltx_video() -> TrainConfig:
    """LoRA of LTX-Video as finetrainers trains it: 49 frames of 512 x 768 pixels. A contrastive term needs other clips
    beside a step's: --loss.target-weight 0.2 --gradient-cache."""
    return TrainConfig(
        output=Path("runs/ltx-video"),
        model="Lightricks/LTX-Video",
        system=LTXVideoConfig(frames=49),
        steps=3000,
        batch_size=1,
        gradient_accumulation=4,
        gradient_checkpointing=True,
        timesteps=TimestepsConfig(distribution="logit-normal", shift=None),
        data=DataConfig(resolution=(512, 768), frames=FramesConfig(frame_rate=25.0, offset_std=0.0)),
        optimizer=OptimizerConfig(learning_rate=3e-5, schedule="constant", betas=(0.9, 0.95), weight_decay=1e-4),
        loss=LossConfig(target_weight=0.0),
        lora=AdapterConfig(rank=128),
        preview=PreviewConfig(frames=49),
    )


def tiny_video(
    config: TrainConfig, *, steps: int, resolution: int = 64, frame_rate: float = 5.0, learning_rate: float = 1e-3
) -> TrainConfig:
    """Scale a video recipe to the packaged tiny model and 64x64 clips on a CPU."""
    frames = replace(config.data.frames, frame_rate=frame_rate, windows_per_clip=8)
    start, root = config.model, Path("runs") / f"tiny-{config.output.relative_to('runs')}"
    return replace(
        config,
        output=root,
        model=f"runs/tiny-{start.removeprefix('runs/')}" if start.startswith("runs/") else "tiny",
        steps=steps,
        batch_size=4,
        checkpoint_every=100,
        ema_decay=0.98,
        data=replace(config.data, resolution=resolution, frames=frames),
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=20),
        preview=PreviewConfig(every=200),
        validation=ValidationConfig(every=200, clips=32),
    )


def tiny_consisti2v() -> TrainConfig:
    """Windows of 8 frames, strides of 1 and 2, temporal layers half in from the start."""
    config = tiny_video(consisti2v(), steps=800)
    frames = replace(config.data.frames, max_offset=2)
    system = ConsistI2VConfig(frames=8, max_stride=2, start_alpha=0.5)
    return replace(config, system=system, data=replace(config.data, frames=frames))


def tiny_emu_video() -> dict[str, TrainConfig]:
    """Emu Video's stages in small: 32 pixels, then 64; the interpolation model makes 20 frames a second of 5."""
    stages = emu_video()
    between = tiny_video(stages["interpolation"], steps=300, frame_rate=20.0)
    return {
        "image": tiny_video(stages["image"], steps=800),
        "low": tiny_video(stages["low"], steps=600, resolution=32),
        "high": tiny_video(stages["high"], steps=600),
        "fine-tune": tiny_video(stages["fine-tune"], steps=200, learning_rate=2.5e-4),
        "interpolation": replace(between, batch_size=2),
    }


def wan() -> TrainConfig:
    """LoRA on Wan 2.1 at 480p, 81 frames at 16 a second, as the field fine-tunes it."""
    return TrainConfig(
        output=Path("runs/wan"),
        model="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        system=WanConfig(),
        lora=AdapterConfig(rank=32),
        steps=2000,
        batch_size=1,
        gradient_checkpointing=True,
        ema_decay=0.0,
        data=DataConfig(resolution=(480, 832), frames=FramesConfig(frame_rate=16.0, offset_std=0.0)),
        timesteps=TimestepsConfig(distribution="logit-normal", shift=None),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant"),
        loss=LossConfig(target_weight=0.0),
    )


def tiny_ltx_video() -> TrainConfig:
    """The transformer of `tiny-ltx-base` on moving shapes, in full, from random weights."""
    frames = FramesConfig(frame_rate=5.0, offset_std=0.0, windows_per_clip=8)
    return TrainConfig(
        output=Path("runs/tiny-ltx-video"),
        model="runs/tiny-ltx-base",
        system=LTXVideoConfig(),
        steps=3000,
        batch_size=8,
        ema_decay=0.99,
        checkpoint_every=500,
        data=DataConfig(resolution=64, frames=frames),
        timesteps=TimestepsConfig(distribution="logit-normal", shift=None),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50),
        loss=LossConfig(target_weight=0.0),
        preview=PreviewConfig(every=1000, frames=16),
        validation=ValidationConfig(every=500, clips=32),
    )


def tiny_keyframes() -> TrainConfig:
    """Jumps of up to 4 frames take the packaged model some thousand steps to learn."""
    config = FORMS["keyframes"].apply(tiny(TrainConfig(output=Path("runs/keyframes"))))
    return replace(config, steps=4000, ema_decay=0.998, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50))


_BY_FORM = {form: recipe(form) for form in ("contrastive", "baseline", "literal")}
RECIPES = {
    **_BY_FORM,
    "keyframes": recipe("keyframes"),
    "consisti2v": consisti2v(),
    "wan": wan(),
    **{f"emu-video/{name}": config for name, config in emu_video().items()},
    "ltx-video": ltx_video(),
    **{f"tiny-{form}": tiny(config) for form, config in _BY_FORM.items()},
    "tiny-keyframes": tiny_keyframes(),
    "tiny-consisti2v": tiny_consisti2v(),
    "tiny-ltx-video": tiny_ltx_video(),
    **{f"tiny-emu-video/{name}": config for name, config in tiny_emu_video().items()},
}
"""What `train --recipe NAME` starts from; the other forms are those of `experiment`."""


def stages(name: str) -> dict[str, TrainConfig]:
    """The recipes of a name, in order: one, or those of a staged recipe; none for an unknown name."""
    if name in RECIPES:
        return {name: RECIPES[name]}
    return {full: config for full, config in RECIPES.items() if full.startswith(f"{name}/")}
