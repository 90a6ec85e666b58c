"""`contrastive-i2v interpolate`: a rollout or a video at another frame rate, along its path in latent space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from contrastive_i2v.cli.outputs import FRAMES_AT_ONCE, Format, write_outputs
from contrastive_i2v.data.video import RATES, VIDEO_EXTENSIONS, VideoError, as_size, probe, read_frames, resize_frames
from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.files import locked_folder
from contrastive_i2v.sampling.interpolation import Path as LatentPath
from contrastive_i2v.sampling.interpolation import resample_trajectory
from contrastive_i2v.system import Codec, Size, System

ROLLOUT_FPS = 5.0
"""Frames a second of a rollout's latents where --fps-in doesn't say: the rate that models here are trained at."""

MAX_FRAMES = 100_000
"""Of one result: at more, a rate is a slip of the keyboard."""
MAX_BYTES = 8 << 30
"""Of one result's pixels and latents, which are in memory until it is written."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Raise or lower the frame rate of rollouts or videos by interpolating between their latents: along a path, or by
    an interpolation model (Emu Video's)."""

    input: tuple[Path, ...]
    """Latents (.safetensors, as `sample --formats latents` writes them), or videos, which are encoded first."""
    model: str = "tiny"
    """The model whose autoencoder decodes (and encodes): the one that made the latents; or an interpolation model,
    which then makes the frames between, as many as it was trained to."""
    output: Path = Path("interpolated")
    """Folder for the results, named as their inputs."""
    formats: tuple[Format, ...] = ("mp4",)
    """mp4, gif, png (a strip of all frames), latents (safetensors, normalised)."""
    fps_in: float | None = None
    """Frames a second of the input; None = the video's own, and 5 for latents."""
    fps_out: float | None = None
    """Frames a second of the result, which lasts as long as the input; or give --factor. A result has at most
    100,000 frames and 8 GiB."""
    factor: float | None = None
    """fps_out / fps_in; None = 4 where --fps-out isn't given."""
    method: LatentPath = "catmull-rom"
    """The path between latents: catmull-rom is smooth; linear and slerp change direction at each given frame."""
    prompt: str = ""
    """What happens, for an interpolation model."""
    seed: int = 0
    """Of an interpolation model's noise."""
    resolution: int | tuple[int, int] | None = None
    """Pixels that videos are encoded at; None = what the model was trained at."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_fields(self, {}, positive=("fps_in", "fps_out", "factor"), distinct=("input", "formats"))
        if self.fps_out is not None and self.factor is not None:
            raise InputError(f"fps_out, factor: expected one of the two, got {self.fps_out:g} and {self.factor:g}")


def run(arguments: Sequence[str]) -> None:
    """Parse the options and interpolate."""
    options = tyro.cli(Options, prog="contrastive-i2v interpolate", args=arguments)
    _check_inputs(options)
    rates = [_rates(path, options) for path in options.input]  # what is wrong with an input is said before any work
    from contrastive_i2v.models import load_system  # takes seconds

    system = load_system(options.model, dtype=getattr(torch, options.dtype))
    gap = system.window.given[0] if system.window.given and not system.window.rolls else None
    if gap is not None:
        if options.fps_out is not None or options.factor not in (None, gap):
            raise InputError(
                f"--fps-out, --factor: the model makes {gap} frames of one; expected neither, or that factor"
            )
        rates = [(fps_in, fps_in * gap) for fps_in, _ in rates]
    elif options.prompt:
        raise InputError("--prompt: a path between latents takes none; expected an interpolation model as --model")
    for path, (fps_in, fps_out) in zip(options.input, rates, strict=True):
        _check_cost(path, _latent_shape(path, system, options.resolution), system.codec, fps_in, fps_out)
    with locked_folder(options.output):
        for path, (fps_in, fps_out) in zip(options.input, rates, strict=True):
            given = _read_latents(path, system, options.resolution)  # [F, C, h, w]
            if gap is None:
                latents = resample_trajectory(given, frame_times(len(given), fps_in, fps_out), options.method)
            else:
                latents = _fill_in(given, system, gap, options)
            with tqdm(desc=f"decoding {path.name}", total=len(latents), unit="frame") as bar:
                outputs = write_outputs(
                    options.output / path.name,
                    latents,
                    system.codec,
                    options.formats,
                    float(fps_out),
                    progress=bar.update,
                )
                for written in outputs:
                    bar.write(str(written))


def frame_times(frames: int, fps_in: Fraction, fps_out: Fraction) -> list[float]:
    """Times of the result's frames, in frames of the input: `k * fps_in / fps_out`, up to the last, `frames - 1`.

    The first frame is the input's first; the last is the input's last where the rates meet there, else the one before.
    """
    step = fps_in / fps_out
    return [float(k * step) for k in range(math.floor((frames - 1) / step) + 1)]


def _fill_in(given: Tensor, system: System, gap: int, options: Options) -> Tensor:
    """From the first given frame to the last; what the model makes before and after isn't part of the video."""
    from contrastive_i2v.sampling import fill_in

    keyframes = system.codec.denormalize(given.to(system.device))[None]
    text = system.encode_text([options.prompt])
    return fill_in(system, keyframes, text, seeds=[options.seed])[0, gap:-gap].cpu()


def _check_inputs(options: Options) -> None:
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
    if rate < 1 / 1001:
        raise InputError(f"--fps-in, --fps-out, --factor: expected at least 1/1001, got {rate:g}")
    return Fraction(rate).limit_denominator(1001)


def _read_latents(path: Path, system: System, resolution: int | Size | None) -> Tensor:
    """Normalised latents `[F, C, h, w]` of a file of either kind."""
    if path.suffix.lower() == ".safetensors":
        return _load(path, system.codec)
    return _usable(path, _encode(path, system, resolution))


def _usable(path: Path, latents: Tensor) -> Tensor:
    if len(latents) < 2:
        raise InputError(f"{path}: holds {len(latents)} frame; expected at least 2 to go between")
    if not torch.isfinite(latents).all():
        raise InputError(f"{path}: its latents hold NaN or infinity; expected finite ones, of another seed or dtype")
    return latents


def _latent_shape(path: Path, system: System, resolution: int | Size | None) -> tuple[int, int, int, int]:
    """`(F, C, h, w)` of what `_read_latents` gives, without encoding a video."""
    codec = system.codec
    if codec.temporal_downscale != 1:
        raise InputError(
            f"--model: its autoencoder makes one latent of {codec.temporal_downscale} frames, so there is no latent a "
            "frame to go between; expected a model with an image autoencoder"
        )
    if path.suffix.lower() == ".safetensors":
        frames, channels, height, width = _load(path, codec).shape
        return frames, channels, height, width
    height, width = _size(system, resolution)
    return probe(path).frames, codec.channels, height // codec.downscale, width // codec.downscale


def _check_cost(
    path: Path, shape: tuple[int, int, int, int], codec: Codec, fps_in: Fraction, fps_out: Fraction
) -> None:
    """Raise InputError where the result would be too long or too large to hold, or have a rate that no file can say."""
    given, channels, height, width = shape
    each = 3 * height * width * codec.downscale**2 + 8 * channels * height * width  # uint8 pixels, float64 latents
    frames = math.floor((given - 1) * fps_out / fps_in) + 1
    most = max(1, min(MAX_FRAMES, MAX_BYTES // each))
    if given < 2 or frames <= most:
        if not RATES[0] <= fps_out <= RATES[1]:
            raise InputError(
                f"{path}: {float(fps_out):g} frames a second; expected {float(RATES[0]):g} to {float(RATES[1]):g}, "
                "which files can say: give another --fps-out"
            )
        return
    fits = (most - 1) * fps_in / (given - 1)
    digits = max(0, 3 - math.floor(math.log10(fits))) if fits else 0
    largest = float(Fraction(math.floor(fits * 10**digits), 10**digits))  # rounded down, so that it does fit
    raise InputError(
        f"{path}: {float(fps_out):g} frames a second of it are {frames} frames and {frames * each / 2**30:.3g} GiB; "
        f"expected at most {MAX_FRAMES} frames and {MAX_BYTES / 2**30:g} GiB: take --fps-out {largest} or less"
    )


def _load(path: Path, codec: Codec) -> Tensor:
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
    if latents.ndim != 4 or latents.shape[1] != codec.channels or 0 in latents.shape:
        raise InputError(
            f"{path}: latents have shape {list(latents.shape)}; expected [F, {codec.channels}, h, w] of this "
            "model's autoencoder: give the --model that made them"
        )
    return _usable(path, latents.float())


def _encode(path: Path, system: System, resolution: int | Size | None) -> Tensor:
    size, codec = _size(system, resolution), system.codec
    pixels = resize_frames(_read_all(path), size)
    parts = tqdm(torch.split(pixels, FRAMES_AT_ONCE), desc=f"encoding {path.name}", unit="batch")
    modes = torch.cat([codec.sample(codec.encode(part[None]))[0] for part in parts])
    return codec.normalize(modes.float()).cpu()


def _size(system: System, resolution: int | Size | None) -> Size:
    return system.size if resolution is None else system.check_size(as_size(resolution), "--resolution")


def _read_all(path: Path) -> Tensor:
    frames = probe(path).frames
    try:
        return read_frames(path, range(frames))
    except VideoError:
        if frames < 2:
            raise
        return read_frames(path, range(frames - 1))  # the container may overstate its length by one
