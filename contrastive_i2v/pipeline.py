"""The front door for people who know diffusers: a folder becomes a pipeline, an image and a prompt become a video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from contrastive_i2v.data.camera import Camera, move_camera
from contrastive_i2v.data.images import image_pixels
from contrastive_i2v.data.video import check_rate, resize_frames, to_uint8, write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.offloading import Level, offload_groups
from contrastive_i2v.sampler import Sampler, SamplerOptions
from contrastive_i2v.sampling.rollout import first_frames, rollout
from contrastive_i2v.system import Dtypes, System, Text, default_device

OutputType = Literal["pil", "np", "pt", "latent"]
ImageInput: TypeAlias = "Image.Image | np.ndarray[Any, Any] | Tensor"


@dataclass(frozen=True)
class ImageToVideoOutput:
    """What a pipeline returns."""

    frames: Any
    """"pil": a list of PIL images for each video; "np": `[B, F, H, W, 3]` in [0, 1]; "pt": `[B, F, 3, H, W]` in [0, 1];
    "latent": `[B, f, C, h, w]`, normalised. Frame 0 is the given image as the autoencoder shows it."""


class ImageToVideoPipeline:
    """Videos from still images and prompts, by any system of this library.

    pipeline = ImageToVideoPipeline.from_pretrained("runs/mine/model", dtype=torch.float16).to("cuda")
    frames = pipeline(image=Image.open("photo.jpg"), prompt="waves roll in", num_frames=16).frames[0]
    export_to_video(frames, "waves.mp4", fps=5)
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self._hooks: list[Any] = []
        self._progress: dict[str, Any] = {}

    @classmethod
    def from_pretrained(cls, name: str | Path, *, dtype: Dtypes = torch.float32) -> ImageToVideoPipeline:
        """Open "tiny", a folder that training wrote, a diffusers folder or a hub id, on the CPU. Raises InputError.

        Args:
            name: options may follow, as `load_system` has them: "runs/mine?quantize=int8".
            dtype: of every part, or by part: {"default": torch.bfloat16, "vae": torch.float32}.
        """
        system = load_system(name, device="cpu", dtype=dtype)
        if system.offloaded:
            raise InputError(
                f"model {str(name)!r}: offload is said after opening it; expected the model without it, and --offload "
                "or enable_group_offload"
            )
        return cls(system)

    @property
    def scheduler(self) -> Any:
        """The diffusers scheduler; assign another one over the same config to sample with it."""
        return self.system.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.system.scheduler = scheduler

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` opens."""
        self.system.save(folder)

    def to(self, device: str | torch.device | None = None, dtype: Dtypes | None = None) -> ImageToVideoPipeline:
        """Move and convert every part in place; returns the pipeline."""
        self.system.to(device, dtype)
        return self

    def enable_compile(self) -> None:
        """Compile the network by torch.compile, as `System.compile` has it; the first call takes the time for it."""
        self.system.compile()

    def enable_model_cpu_offload(self, device: str | torch.device | None = None) -> None:
        """Keep each part on the CPU but while it computes, on `device` (None = CUDA where there is one)."""
        from accelerate import cpu_offload_with_hook

        self.system.to("cpu")
        hook = None
        for module in self.system.parts().values():
            _, hook = cpu_offload_with_hook(module, default_device() if device is None else device, hook)
            self._hooks.append(hook)

    def enable_group_offload(
        self, device: str | torch.device | None = None, *, level: Level = "block", use_stream: bool = False
    ) -> None:
        """Keep the weights on the CPU but while they are computed with, on `device` (None = CUDA where there is one), a
        block or a leaf (a layer) at a time: less memory and more copying than `enable_model_cpu_offload`.

        Args:
            use_stream: copy what comes next while the GPU computes, from page-locked memory.

        Raises:
            InputError: a network whose repeated blocks diffusers doesn't name.
        """
        where = default_device() if device is None else torch.device(device)
        offload_groups(self.system, where, level=level, stream=use_stream)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of the tqdm bar, as `disable=True`."""
        self._progress = options

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput] | None = None,
        prompt: str | Sequence[str] = "",
        *,
        num_frames: int = 16,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        history_level: float | None = None,
        keyframe_stride: int | None = None,
        prediction_scale: float | None = None,
        prediction_slope: float | None = None,
        fps: float | None = None,
        camera: Camera | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seeds: Sequence[int] | None = None,
        negative_prompt: str | Sequence[str] = "",
        output_type: OutputType = "pil",
        callback: Callable[[int, Tensor], object] | None = None,
    ) -> ImageToVideoOutput:
        """Roll a still image out into a video.

        Args:
            image: one, or one a video: a PIL image; an array `[H, W, 3]`, uint8 or float in [0, 1]; or a tensor
                `[3, H, W]` in [0, 1]. It is cropped to the middle and resized, never squashed. None = the model makes
                it from the prompt first, where it can (Emu Video).
            prompt: one, or one a video; "" is none.
            negative_prompt: one, or one a video, which guidance towards the prompt leads away from.
            num_frames: length of the video, the given image included.
            height, width: in pixels; None = what the model was trained at.
            num_inference_steps, guidance_scale, image_guidance_scale, guidance_interval, history_level,
                keyframe_stride, prediction_scale, prediction_slope: as `Sampler` has them; None = what suits the model,
                or was calibrated for it.
            fps: frames a second, for models that are told; None = what the model was trained at.
            camera: how the camera moves over the image, for models with FrameInit; None = as the model likes.
            generator: one for all videos, or one a video; None = a random one. Its state moves on.
            seeds: one integer a video in place of a generator: a video is then the same alone and in a batch.
            output_type: "pil", "np", "pt" or "latent".
            callback: called with (how many latent frames after the first are finished, those that just were) while it
                goes on.

        Raises:
            InputError: counts that disagree, a size that isn't a multiple of the codec's, frames that hold NaN.
        """
        system, codec = self.system, self.system.codec
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(f"output_type={output_type!r}; expected pil, np, pt or latent")
        if num_frames < 1:
            raise InputError(f"num_frames: expected at least 1, got {num_frames}")
        images = list(image) if isinstance(image, (list, tuple)) else [cast(ImageInput, image)] * (image is not None)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        count = max(len(images), len(prompts))
        negatives = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt)
        for name, values in (("image", images), ("prompt", prompts), ("negative_prompt", negatives)):
            if len(values) not in (1, count) and not (values is images and image is None):
                raise InputError(f"{name}: expected 1 or {count}, got {len(values)}")
        size = system.check_size((height or system.size[0], width or system.size[1]), "height, width")
        seeds = _seeds(generator, count) if seeds is None else seeds

        options = SamplerOptions(
            steps=num_inference_steps,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
            guidance_interval=guidance_interval,
            history_level=history_level,
            keyframe_stride=keyframe_stride,
            prediction_scale=prediction_scale,
            prediction_slope=prediction_slope,
        )
        sampler = options.over(system.sampler)
        if any(negatives) and sampler.guidance_scale == 1:
            raise InputError("negative_prompt: guidance towards the prompt is off; expected a guidance_scale above 1")
        text = _expand(system.encode_text(prompts), count)
        negative = _expand(system.encode_text(negatives), count) if any(negatives) else None
        layout = pixels = None
        if camera is not None and not images:
            raise InputError(f"camera {camera}: it moves over an image; expected one")
        if camera is not None:
            moved = [move_camera(as_frame(one), camera, frames=num_frames, size=size) for one in images]
            coarse = codec.sample(codec.encode(torch.stack(moved))).expand(count, -1, -1, -1, -1)
            own, layout = coarse[:, 0], codec.normalize(coarse)
        elif images:
            each = torch.cat([resize_frames(as_frame(one), size) for one in images])  # [1 or B, 3, H, W]
            own = codec.sample(codec.encode(each[:, None]))[:, 0].expand(count, -1, -1, -1)
            pixels = each.expand(count, -1, -1, -1)
        else:
            still = SamplerOptions(steps=num_inference_steps, guidance_scale=guidance_scale)
            image_sampler = _over_still(still, system)
            own = first_frames(system, text, size=size, seeds=seeds, sampler=image_sampler, negative=negative)
        self._offload()
        latent_frames = -(-(num_frames - 1) // codec.temporal_downscale) + 1
        with tqdm(total=latent_frames, initial=1, unit="frame", **{"desc": "sampling"} | self._progress) as bar:

            def advance(frame: int, latents: Tensor) -> None:
                bar.update(frame + 1 - bar.n)
                if callback is not None:
                    callback(frame, latents)

            latents = rollout(
                system,
                own,
                text,
                frames=latent_frames,
                seeds=seeds,
                sampler=sampler,
                fps=fps,
                layout=layout,
                pixels=pixels,
                negative=negative,
                callback=advance,
            )
        if not bool(torch.isfinite(latents).all()):
            raise InputError(
                "the latents hold NaN or infinity; sample in float32 or bfloat16, or check the weights of the model"
            )
        frames = latents if output_type == "latent" else self.decode(latents, num_frames, output_type)
        self._offload()
        return ImageToVideoOutput(frames)

    def decode(self, latents: Tensor, num_frames: int, output_type: OutputType = "pil") -> Any:
        """Normalised latents `[B, f, C, h, w]` -> frames, as `__call__` returns them."""
        pixels = (self.system.codec.decode(latents)[:, :num_frames].float() + 1) / 2  # [B, F, 3, H, W]
        if output_type == "pt":
            return pixels
        if output_type == "np":
            return pixels.permute(0, 1, 3, 4, 2).cpu().numpy()
        arrays = to_uint8(pixels * 2 - 1).permute(0, 1, 3, 4, 2).contiguous().cpu().numpy()
        return [[Image.fromarray(frame) for frame in video] for video in arrays]

    def _offload(self) -> None:
        for hook in self._hooks:
            hook.offload()


def export_to_video(frames: Any, path: str | Path, fps: float = 5.0) -> None:
    """Write one video of a pipeline's `frames`, "pil", "np" or "pt", as an H.264 mp4.

    As diffusers' function of this name, by what this library is installed with. Raises InputError.
    """
    if Path(path).suffix.lower() != ".mp4":
        raise InputError(f"{path}: expected a name that ends in .mp4")
    check_rate("fps", fps)
    pictures = [as_frame(frame) for frame in frames]
    if not pictures:
        raise InputError(f"{path}: no frames; expected at least one")
    write_video(Path(path), torch.cat(pictures), fps)


def as_frame(image: ImageInput) -> Tensor:
    """An image as uint8 `[1, 3, H, W]`, PIL images as `image_pixels` reads them. Raises InputError for what is none."""
    if isinstance(image, Image.Image):
        return image_pixels(image)
    tensor = torch.from_numpy(image).permute(2, 0, 1) if isinstance(image, np.ndarray) and image.ndim == 3 else image
    if not isinstance(tensor, Tensor) or tensor.ndim != 3 or len(tensor) != 3:
        shape = f" {tuple(image.shape)}" if hasattr(image, "shape") else ""
        raise InputError(
            f"image: got {type(image).__name__}{shape}; expected a PIL image, an array [H, W, 3] or a tensor [3, H, W]"
        )
    return (tensor if tensor.dtype == torch.uint8 else to_uint8(tensor * 2 - 1))[None].cpu()


def _expand(text: Text, count: int) -> Text:
    return {name: value.expand(count, *value.shape[1:]) for name, value in text.items()}


def _over_still(options: SamplerOptions, system: System) -> Sampler | None:
    image = system.still()
    return None if image is None else options.over(image.sampler)


def _seeds(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """A seed a video, from the generator's next numbers."""
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        return torch.randint(2**62, (count,), generator=generator, device=device).tolist()
    if len(generator) != count:
        raise InputError(f"generator: expected one, or one for each of the {count} videos, got {len(generator)}")
    return [int(torch.randint(2**62, (1,), generator=one, device=one.device)) for one in generator]
