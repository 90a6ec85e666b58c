"""`contrastive-i2v interpolate`: a rollout or a video at another frame rate, along its path in latent space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from contrastive_i2v.cli.sample import Format, write_outputs
from contrastive_i2v.data.video import VIDEO_EXTENSIONS, VideoError, probe, read_frames, resize_frames
from contrastive_i2v.errors import InputError
from contrastive_i2v.sampling.interpolation import Method, resample_trajectory

if TYPE_CHECKING:
    from contrastive_i2v.models import InstructPix2Pix

ROLLOUT_FPS = 5.0
"""Frames a second of a rollout's latents where --fps-in doesn't say: the rate that models here are trained at."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Raise or lower the frame rate of rollouts or videos by interpolating between their latents."""

    input: tuple[Path, ...]
    """Latents (.safetensors, as `sample --formats latents` writes them), or videos, which are encoded first."""
    model: str = "tiny"
    """The model whose VAE decodes (and encodes): the one that made the latents."""
    output: Path = Path("interpolated")
    """Folder for the results, named as their inputs."""
    formats: tuple[Format, ...] = ("mp4",)
    """mp4, gif, png (a strip of all frames), latents (safetensors, scaled)."""
    fps_in: float | None = None
    """Frames a second of the input; None = the video's own, and 5 for latents."""
    fps_out: float | None = None
    """Frames a second of the result, which lasts as long as the input; or give --factor."""
    factor: float | None = None
    """fps_out / fps_in; None = 4 where --fps-out isn't given."""
    method: Method = "catmull-rom"
    """The path between latents: catmull-rom is smooth; linear and slerp change direction at each given frame."""
    resolution: int | None = None
    """Pixels that videos are encoded at; None = what the model was trained at."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


def run(arguments: Sequence[str]) -> None:
    """Parse the options and interpolate."""
    options = tyro.cli(Options, prog="contrastive-i2v interpolate", args=arguments)
    _check(options)
    rates = [_rates(path, options) for path in options.input]  # what is wrong with an input is said before any work
    from contrastive_i2v.models import InstructPix2Pix  # takes seconds

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = InstructPix2Pix.from_pretrained(options.model, device=device, dtype=getattr(torch, options.dtype))
    for path, (fps_in, fps_out) in zip(options.input, rates, strict=True):
        given = _read_latents(path, model, options.resolution)  # [F, C, h, w]
        latents = resample_trajectory(given, frame_times(len(given), fps_in, fps_out), options.method)
        decodes = {*options.formats} != {"latents"}
        with _progress(model.vae.decoder, f"decoding {path.name}", len(latents) if decodes else 0) as bar:
            name = options.output / path.name
            for written in write_outputs(name, latents, model, options.formats, float(fps_out)):
                bar.write(str(written))


def frame_times(frames: int, fps_in: Fraction, fps_out: Fraction) -> list[float]:
    """Times of the result's frames, in frames of the input: `k * fps_in / fps_out`, up to the last, `frames - 1`.

    The first frame is the input's first; the last is the input's last where the rates meet there, else the one before.
    """
    step = fps_in / fps_out
    return [float(k * step) for k in range(math.floor((frames - 1) / step) + 1)]


def _check(options: Options) -> None:
    for name in ("fps_in", "fps_out", "factor"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: expected a number > 0")
    if options.fps_out is not None and options.factor is not None:
        raise InputError("--fps-out, --factor: expected one of the two, got both")
    if not options.formats:
        raise InputError("--formats: expected at least one of mp4, gif, png, latents, got none")
    stems: dict[str, Path] = {}
    for path in options.input:
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected latents (.safetensors) or a video")
        if path.suffix.lower() not in (".safetensors", *VIDEO_EXTENSIONS):
            raise InputError(
                f"{path}: expected latents (.safetensors) or a video ({', '.join(VIDEO_EXTENSIONS)}), "
                f"got {path.suffix or 'no extension'}"
            )
        if path.stem in stems:
            raise InputError(f"--input: {stems[path.stem]} and {path} would both be written as {path.stem}; rename one")
        stems[path.stem] = path
        for kind in options.formats:
            result = (options.output / path.name).with_suffix(".safetensors" if kind == "latents" else f".{kind}")
            if result.resolve() == path.resolve():
                raise InputError(f"--output {options.output}: would overwrite {path}; expected another folder")


def _rates(path: Path, options: Options) -> tuple[Fraction, Fraction]:
    """Frames a second of the input and of the result."""
    fps_in = options.fps_in
    if fps_in is None:
        fps_in = ROLLOUT_FPS if path.suffix.lower() == ".safetensors" else probe(path).fps
    given = _fraction(fps_in)
    if options.fps_out is not None:
        return given, _fraction(options.fps_out)
    return given, given * _fraction(4.0 if options.factor is None else options.factor)


def _fraction(rate: float) -> Fraction:
    """29.97 is 30000 / 1001 to containers: exact ratios make the given frames fall on whole times."""
    return max(Fraction(rate).limit_denominator(1001), Fraction(1, 1001))


def _read_latents(path: Path, model: InstructPix2Pix, resolution: int | None) -> Tensor:
    """Scaled latents `[F, C, h, w]` of a file of either kind."""
    latents = _load(path, model) if path.suffix.lower() == ".safetensors" else _encode(path, model, resolution)
    if len(latents) < 2:
        raise InputError(f"{path}: holds {len(latents)} frame; expected at least 2 to go between")
    if not torch.isfinite(latents).all():
        raise InputError(f"{path}: its latents hold NaN or infinity; expected finite ones, of another seed or dtype")
    return latents


def _load(path: Path, model: InstructPix2Pix) -> Tensor:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: can't be read as safetensors ({error})") from error
    if "latents" not in tensors:
        raise InputError(
            f"{path}: holds {', '.join(sorted(tensors)) or 'nothing'}; expected a tensor named latents, as "
            "`contrastive-i2v sample --formats latents` writes"
        )
    latents: Tensor = tensors["latents"]
    if latents.ndim != 4 or latents.shape[1] != model.latent_channels or 0 in latents.shape:
        raise InputError(
            f"{path}: latents have shape {list(latents.shape)}; expected [F, {model.latent_channels}, h, w] of this "
            "model's VAE: give the --model that made them"
        )
    return latents.float()


def _encode(path: Path, model: InstructPix2Pix, resolution: int | None) -> Tensor:
    size = resolution or model.unet.config.sample_size * model.downscale
    if size < 1 or size % model.downscale:
        raise InputError(f"--resolution {size}: expected a multiple of {model.downscale}")
    pixels = resize_frames(_read_all(path), size)
    with _progress(model.vae.encoder, f"encoding {path.name}", len(pixels)):
        modes = model.encode_images(pixels).chunk(2, dim=1)[0]
    latents: Tensor = modes.float().cpu() * model.scaling_factor
    return latents


def _read_all(path: Path) -> Tensor:
    frames = probe(path).frames
    try:
        return read_frames(path, range(frames))
    except VideoError:
        if frames < 2:
            raise
        return read_frames(path, range(frames - 1))  # the container may overstate its length by one


@contextmanager
def _progress(module: Any, text: str, frames: int) -> Iterator[Any]:
    """A bar over the frames that `module` has put through, chunk by chunk."""
    with tqdm(total=frames, desc=text, unit="frame", disable=not frames) as bar:
        hook = module.register_forward_hook(lambda module, inputs, output: bar.update(len(output)) and None)
        try:
            yield bar
        finally:
            hook.remove()
