"""`contrastive-i2v sample`: still images and prompts become videos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from contrastive_i2v.cli.outputs import Format, write_outputs
from contrastive_i2v.data.camera import Camera
from contrastive_i2v.data.images import read_image
from contrastive_i2v.data.video import VIDEO_EXTENSIONS, as_size, check_rate, read_frames
from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.files import locked_folder
from contrastive_i2v.sampler import SamplerOptions
from contrastive_i2v.system import Dtype, default_device

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
    """Turn still images and prompts into videos, what was generated conditioning what comes next."""

    prompt: tuple[str, ...]
    """What happens; one, or as many as images."""
    image: tuple[Path, ...] = ()
    """Images, or videos whose first frame is taken; one, or as many as prompts. None = the model makes them from the
    prompts first, where it can (Emu Video)."""
    model: str = "tiny"
    """"tiny", a folder that train wrote, any InstructPix2Pix folder, or a hub id."""
    lora: tuple[str, ...] = ()
    """Adapters of that model, PATH or PATH=WEIGHT each, added to its weights."""
    output: Path = Path("videos")
    """Folder for the videos: 00000.mp4, 00001.mp4, ..."""
    formats: tuple[Format, ...] = ("mp4",)
    """mp4, gif, png (a strip of all frames), latents (safetensors, normalised)."""
    frames: int = 8
    """Length of the video, the given image included."""
    scheduler: Literal["model", "ddim", "ddpm", "euler", "euler-ancestral", "dpm++", "unipc"] = "model"
    """The model's own, or another over the same noise schedule."""
    camera: Camera | None = None
    """How the camera moves over the image, for models with FrameInit (ConsistI2V); a pan needs a wide image."""
    seed: int = 0
    """Video number i gets seed + i; a video is the same alone or in a batch."""
    resolution: int | tuple[int, int] | None = None
    """Pixels: a square's side, or height and width; None = what the model was trained at."""
    negative_prompt: str = ""
    """What guidance towards the prompt leads away from."""
    batch_size: int = 4
    """Videos made at a time."""
    fps: float | None = None
    """Frames a second of the video, which models that can are told; None = what the model was trained at."""
    dtype: Dtype = "float32"
    """What the model computes in."""
    vae_dtype: Dtype | None = None
    """What its autoencoder computes in; None = as the rest. Some lose colours in half precision."""
    quantize: Literal["no", "bfloat16", "int8", "nf4"] = "no"
    """What the linear weights of the network's repeated blocks are kept in: 2, 1 or 0.56 bytes each (nf4 needs
    bitsandbytes)."""
    offload: Literal["no", "model", "block", "leaf"] = "no"
    """Keep weights in the host's memory until the GPU needs them: a part of the model, a block or a layer at a time,
    each with less memory and more copying than the one before."""
    offload_stream: bool = False
    """With block or leaf: copy what comes next while the GPU computes, from page-locked memory."""
    compile: bool = False
    """Compile the network by torch.compile: some tens of seconds first, then faster frames."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {"frames": 1, "batch_size": 1}, distinct=("formats",))
        if self.fps is not None:
            check_rate("fps", self.fps)
        if self.offload_stream and self.offload not in ("block", "leaf"):
            raise InputError("offload_stream: is of --offload block or leaf; expected one of them")
        if self.compile and self.offload in ("block", "leaf"):
            raise InputError(
                f"offload={self.offload}: compiled code brings no weights; expected no --compile, or model"
            )


def run(arguments: Sequence[str]) -> None:
    """Parse the options and sample."""
    options = tyro.cli(Options, prog="contrastive-i2v sample", args=arguments)
    jobs = _pair_up(options)
    if options.offload != "no" and default_device().type == "cpu":
        raise InputError(f"--offload {options.offload}: keeps weights from a GPU, and there is none here; leave it out")
    # what is wrong with an image is said before any work
    images = [_first_frame(image) for image, _ in jobs if image is not None]
    from contrastive_i2v.models.loading import with_adapters  # takes seconds
    from contrastive_i2v.pipeline import ImageToVideoPipeline

    name = with_adapters(options.model, options.lora)
    if options.quantize != "no":
        name += f"{'&' if '?' in name else '?'}quantize={options.quantize}"
    dtype: dict[str, torch.dtype] = {"default": getattr(torch, options.dtype)}
    if options.vae_dtype:
        dtype["vae"] = getattr(torch, options.vae_dtype)
    pipeline = ImageToVideoPipeline.from_pretrained(name, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    if options.offload == "model":
        pipeline.enable_model_cpu_offload()
    elif options.offload != "no":
        pipeline.enable_group_offload(level=options.offload, use_stream=options.offload_stream)
    else:
        pipeline.to(default_device())
    if options.compile:
        pipeline.enable_compile()
    if options.scheduler != "model":
        import diffusers

        cls = getattr(diffusers, SCHEDULERS[options.scheduler])
        pipeline.scheduler = cls.from_config(pipeline.scheduler.config)
    asked = pipeline.system.size if options.resolution is None else as_size(options.resolution)
    height, width = pipeline.system.check_size(asked, "--resolution")

    batches = math.ceil(len(jobs) / options.batch_size)
    generated = math.ceil((options.frames - 1) / pipeline.system.codec.temporal_downscale)  # latent frames
    bar = tqdm(total=batches * generated, desc="sampling", unit="frame")
    with locked_folder(options.output), bar:
        for start in range(0, len(jobs), options.batch_size):
            part = slice(start, start + options.batch_size)
            latents = pipeline(
                image=[image[0] for image in images[part]] or None,
                prompt=[prompt for _, prompt in jobs[part]],
                negative_prompt=options.negative_prompt,
                num_frames=options.frames,
                height=height,
                width=width,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance_scale,
                image_guidance_scale=options.image_guidance_scale,
                guidance_interval=options.guidance_interval,
                history_level=options.history_level,
                keyframe_stride=options.keyframe_stride,
                prediction_scale=options.prediction_scale,
                prediction_slope=options.prediction_slope,
                fps=options.fps,
                camera=options.camera,
                seeds=[options.seed + i for i in range(start, start + len(jobs[part]))],
                output_type="latent",
                callback=lambda frame, z: bar.update(z.shape[1]),
            ).frames  # [B, f, C, h, w]
            for number, video in enumerate(latents, start):
                stem, fps = options.output / f"{number:05d}", options.fps or pipeline.system.fps
                codec = pipeline.system.codec
                for path in write_outputs(stem, video, codec, options.formats, fps, length=options.frames):
                    bar.write(str(path))


def _pair_up(options: Options) -> list[tuple[Path | None, str]]:
    images: tuple[Path | None, ...] = options.image or (None,)
    prompts = options.prompt
    count = max(len(images), len(prompts))
    for name, values in (("--image", images), ("--prompt", prompts)):
        if len(values) not in (1, count):
            raise InputError(f"{name}: expected 1 or {count} values, got {len(values)}")
    return list(zip(images * (count // len(images)), prompts * (count // len(prompts)), strict=True))


def _first_frame(path: Path) -> Tensor:
    return read_frames(path, [0]) if path.suffix.lower() in VIDEO_EXTENSIONS else read_image(path)
