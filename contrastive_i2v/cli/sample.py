"""`contrastive-i2v sample`: still images and prompts become videos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from contrastive_i2v.cli.sampler_options import SamplerOptions
from contrastive_i2v.data.video import (
    VIDEO_EXTENSIONS,
    read_frames,
    read_image,
    resize_frames,
    to_uint8,
    write_gif,
    write_strip,
    write_video,
)
from contrastive_i2v.errors import InputError
from contrastive_i2v.sampling import rollout

if TYPE_CHECKING:
    from contrastive_i2v.models import InstructPix2Pix

Format = Literal["mp4", "gif", "png", "latents"]
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@dataclass(frozen=True, kw_only=True)
class Options(SamplerOptions):
    """Turn still images and prompts into videos, each generated frame conditioning the next."""

    image: tuple[Path, ...]
    """Images, or videos whose first frame is taken; one, or as many as prompts."""
    prompt: tuple[str, ...]
    """What happens; one, or as many as images."""
    model: str = "tiny"
    """"tiny", a folder that train wrote, any InstructPix2Pix folder, or a hub id."""
    output: Path = Path("videos")
    """Folder for the videos: 00000.mp4, 00001.mp4, ..."""
    formats: tuple[Format, ...] = ("mp4",)
    """mp4, gif, png (a strip of all frames), latents (safetensors, scaled)."""
    frames: int = 8
    """Length of the video, the given image included."""
    scheduler: Literal["model", "ddim", "ddpm", "euler", "euler-ancestral", "dpm++", "unipc"] = "model"
    """The model's own, or another over the same noise schedule."""
    seed: int = 0
    """Video number i gets seed + i; a video is the same alone or in a batch."""
    resolution: int | None = None
    """Pixels; None = what the model was trained at."""
    batch_size: int = 4
    """Videos made at a time."""
    fps: float = 5.0
    """Of the written video; the model's frames are 1/5 s apart unless trained otherwise."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


def run(arguments: Sequence[str]) -> None:
    """Parse the options and sample."""
    options = tyro.cli(Options, prog="contrastive-i2v sample", args=arguments)
    jobs = _pair_up(options)
    images = [_first_frame(image) for image, _ in jobs]  # what is wrong with one is said before any work
    from contrastive_i2v.models import InstructPix2Pix  # takes seconds

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = InstructPix2Pix.from_pretrained(options.model, device=device, dtype=getattr(torch, options.dtype))
    size = options.resolution or model.unet.config.sample_size * model.downscale
    if size % model.downscale:
        raise InputError(f"--resolution {size}: expected a multiple of {model.downscale}")
    pixels = torch.cat([resize_frames(image, size) for image in images])
    scheduler, sampler = _build_scheduler(model, options.scheduler), options.sampler(model)
    null_embeds = model.encode_prompts([""])

    batches = math.ceil(len(jobs) / options.batch_size)
    bar = tqdm(total=batches * (options.frames - 1), desc="sampling", unit="frame")
    for start in range(0, len(jobs), options.batch_size):
        part = slice(start, start + options.batch_size)
        latents = rollout(
            model.denoiser,
            model.encode_images(pixels[part]).chunk(2, dim=1)[0],
            model.encode_prompts([prompt for _, prompt in jobs[part]]),
            null_embeds,
            frames=options.frames,
            scheduler=scheduler,
            steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            image_guidance_scale=sampler.image_guidance_scale,
            scaling_factor=model.scaling_factor,
            seeds=[options.seed + i for i in range(start, start + len(jobs[part]))],
            callback=lambda frame, z: _advance(bar),
        )  # [B, F, C, h, w]
        for number, video in enumerate(latents, start):
            if not torch.isfinite(video).all():
                raise InputError(
                    f"video {number}: the latents hold NaN or infinity; use --dtype float32 or bfloat16, or check the "
                    f"weights of {options.model}"
                )
            for path in write_outputs(options.output / f"{number:05d}", video, model, options.formats, options.fps):
                bar.write(str(path))
    bar.close()


def write_outputs(
    stem: Path, latents: Tensor, model: InstructPix2Pix, formats: Sequence[Format], fps: float
) -> list[Path]:
    """Decode scaled latents `[F, C, h, w]` in chunks and write `stem.{format}`; returns the files."""
    written = []
    frames = to_uint8(model.decode_latents(latents)).cpu() if {*formats} - {"latents"} else latents
    for kind in formats:
        path = stem.with_suffix(".safetensors" if kind == "latents" else f".{kind}")
        if kind == "mp4":
            write_video(path, frames, fps)
        elif kind == "gif":
            write_gif(path, frames, fps)
        elif kind == "png":
            write_strip(path, frames)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"latents": latents.cpu().contiguous()}, path)
        written.append(path)
    return written


def _advance(bar: Any) -> None:
    bar.update()


def _pair_up(options: Options) -> list[tuple[Path, str]]:
    images, prompts = options.image, options.prompt
    count = max(len(images), len(prompts))
    for name, values in (("--image", images), ("--prompt", prompts)):
        if len(values) not in (1, count):
            raise InputError(f"{name}: expected 1 or {count} values, got {len(values)}")
    return list(zip(images * (count // len(images)), prompts * (count // len(prompts)), strict=True))


def _first_frame(path: Path) -> Tensor:
    return read_frames(path, [0]) if path.suffix.lower() in VIDEO_EXTENSIONS else read_image(path)


def _build_scheduler(model: InstructPix2Pix, name: str) -> Any:
    if name == "model":
        return model.scheduler
    import diffusers

    return getattr(diffusers, SCHEDULERS[name]).from_config(model.scheduler.config)
