"""From what the command line names to the objects of an evaluation: methods, networks, the true clips."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive_i2v.cli.evaluation_options import SuiteOptions
from contrastive_i2v.data.examples import SKIPPED, none_left_in
from contrastive_i2v.data.types import NoClipLeft
from contrastive_i2v.data.video import VIDEO_EXTENSIONS, as_size, probe
from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.evaluation import generators
from contrastive_i2v.evaluation.calibration import CALIBRATION, read_default
from contrastive_i2v.evaluation.extractors import loading
from contrastive_i2v.evaluation.fidelity import load_lpips
from contrastive_i2v.evaluation.generators import Generator, Method
from contrastive_i2v.evaluation.results import Extractor
from contrastive_i2v.evaluation.suite import Networks
from contrastive_i2v.evaluation.videos import ReferenceSet, read_reference_set
from contrastive_i2v.files import folder_hash
from contrastive_i2v.models import load_system, opening_kind
from contrastive_i2v.models.loading import locate, read_object, split_options, split_weight
from contrastive_i2v.system import Dtype, Size, System, default_device

BASELINES = ("first-frame", "retrieval")


def split_name(spec: str) -> tuple[str, str]:
    """NAME=SPEC -> (name, spec); without a name, one made from the spec: runs/a/model is "a".

    Raises InputError for a name that can't be a folder's.
    """
    name, equals, rest = spec.partition("=")
    if not equals or Path(spec).exists():
        path = Path(spec)
        own = [part for part in path.parts if part not in ("model", "videos", "/", ".", "..")]
        return re.sub(r"[^\w.-]", "-", own[-1] if own else "method"), spec
    if not re.fullmatch(r"[\w.-]+", name) or not rest:
        raise InputError(f"method {spec!r}: expected NAME=SPEC with a NAME of letters, digits, '.', '-' and '_'")
    return name, rest


def kind_of(spec: str) -> str:
    """ "checkpoint", "pipeline", "videos", "first-frame" or "retrieval". Raises InputError for what is none."""
    if spec in BASELINES:
        return spec
    source, options = split_options(spec)
    if source == "tiny" or options:
        return "checkpoint"
    folder = Path(spec).expanduser()
    if folder.is_dir() and opening_kind(Path(locate(folder))) is not None:
        return "checkpoint"
    if (folder / "model_index.json").is_file():
        _read_class(folder / "model_index.json")  # a damaged one is said before any work
        return "pipeline"
    if folder.is_dir() and any(file.suffix.lower() in VIDEO_EXTENSIONS for file in folder.rglob("*")):
        return "videos"
    if not folder.exists() and spec.count("/") == 1 and not spec.startswith((".", "~")):
        return "checkpoint"  # a hub id
    raise InputError(
        f"method {spec!r} is unknown; expected 'tiny', a folder that train wrote, a diffusers folder (with "
        "model_index.json), a hub id like 'owner/name', a folder of finished videos, 'first-frame' or 'retrieval'"
    )


def load_reference(options: SuiteOptions, specs: Sequence[str]) -> ReferenceSet:
    """The true clips, at the size asked for or that of the first method which has one."""
    specs = [split_name(spec)[1] for spec in specs]
    resolution = options.resolution or next(filter(None, map(_native_size, specs)), None)
    if resolution is None:
        raise InputError("resolution: nothing here says which; give --resolution")
    for spec in specs:
        if kind_of(spec) == "checkpoint":
            _system(spec).check_size(as_size(resolution), f"--resolution for model {spec!r}")
    try:
        return read_reference_set(
            options.data,
            frames=options.frames,
            resolution=resolution,
            frame_rate=options.frame_rate,
            limit=options.clips,
            source=options.source,
        )
    except NoClipLeft as error:
        raise none_left_in(options.output / SKIPPED, error) from error


def build_method(spec: str, options: SuiteOptions, reference: ReferenceSet, warnings: list[str]) -> Method:
    """A method from [NAME=]SPEC; what should be said about it is added to `warnings`."""
    name, spec = split_name(spec)
    kind = kind_of(spec)
    if kind == "first-frame":
        return replace(generators.first_frame(), name=name)
    if kind == "retrieval":
        if options.train_data is None:
            raise InputError("retrieval: answers with training clips; give their folder as --train-data")
        text = loading.load_text_extractor(options.text, default_device())
        return replace(generators.retrieval(options.train_data, text, reference), name=name)
    if kind == "videos":
        given, written = Path(spec).expanduser().resolve(), (options.output / "videos" / name).resolve()
        if given.is_relative_to(written) or written.is_relative_to(given):
            raise InputError(
                f"method {name}={spec}: its videos would be written among those it is read from, {written}; expected "
                "another name, as OTHER=SPEC, or another --output"
            )
        method, extra = generators.finished_videos(name, Path(spec).expanduser(), reference)
        if extra:
            warnings.append(f"{name}: {len(extra)} videos answer no clip, {extra[0].name} among them.")
        return method
    if kind == "pipeline":
        return _pipeline(name, spec, options)
    sampler = options.over(_system(spec).sampler)
    identity = {
        "weights": _weights(spec),
        "options": spec.partition("?")[2],
        "sampler": f"{sampler}, {_system(spec).scheduler.__class__.__name__}",
    }
    if (computed := options.dtype + ", compiled" * options.compile) != "float32":
        identity["computed in"] = computed
    return Method(
        name,
        "checkpoint",
        identity,
        lambda: generators.roll_out(_system(spec, options.dtype, options.compile), sampler),
        seeds=options.seeds,
        about={"model": spec, **_training(spec)},
    )


def common_settings(options: SuiteOptions, specs: Sequence[str], warnings: list[str]) -> SuiteOptions | None:
    """The options with the sampler that the first model had before its calibration; None where all models are sampled
    alike anyway, which is said where it may suit one better than another."""
    models = [spec for _, spec in map(split_name, specs) if kind_of(spec) == "checkpoint"]
    samplers = {options.over(_system(spec).sampler) for spec in models}
    if len(samplers) > 1:
        folder = Path(locate(split_options(models[0])[0]))
        before = read_default(folder / CALIBRATION) or replace(
            _system(models[0]).sampler, keyframe_stride=1, prediction_scale=1.0, prediction_slope=0.0
        )
        return replace(options, **{item.name: getattr(before, item.name) for item in fields(before)})
    if len(models) > 1:
        warnings.append(
            f"All models are sampled at one setting ({samplers.pop()}), which may suit one of them better than "
            "another: `contrastive-i2v calibrate` finds each one's own."
        )
    return None


def build_networks(options: SuiteOptions, specs: Sequence[str]) -> tuple[Networks, dict[str, str]]:
    """The networks of the metrics, and provenance of them."""
    device = default_device()
    encoder = options.latents
    if encoder is None:
        named = (split_name(spec)[1] for spec in specs)
        encoder = next((spec for spec in named if kind_of(spec) == "checkpoint"), "none")
    try:
        lpips = None if options.lpips is None else load_lpips(options.lpips)
    except ImportError as error:
        raise InputError(f"lpips: {error}") from error
    networks = Networks(
        image=None if options.image == "none" else loading.load_image_extractor(options.image, device),
        subject=None if options.subject is None else loading.load_image_extractor(options.subject, device),
        i2v_background=None
        if options.i2v_background is None
        else loading.load_background(options.i2v_background, device),
        video=None if options.video == "none" else loading.load_video_extractor(options.video, device),
        clip=loading.load_clip(options.clip, device),
        flow=None if options.flow == "none" else loading.load_flow(options.flow, device),
        latents=None if encoder == "none" else Latents(encoder),
        lpips=lpips,
    )
    return networks, {"latents of": encoder} if encoder != "none" else {}


class Latents:
    """Latents of a model's codec, as diffusion sees them: the posterior's mode, normalised."""

    def __init__(self, spec: str) -> None:
        self.system = _system(spec)
        self.about = Extractor(
            name=f"VAE of {spec}",
            dimension=self.system.codec.channels,
            weights=f"sha256 {self.system.fingerprint}",
            resize="none",
        )

    def __call__(self, frames: Tensor) -> Tensor:
        codec = self.system.codec
        return codec.normalize(codec.sample(codec.encode(frames[:, None]))[:, 0]).float().cpu()


def _pipeline(name: str, spec: str, options: SuiteOptions) -> Method:
    folder = Path(spec).expanduser()
    arguments = generators.parse_arguments(options.pipeline_arguments)

    def load() -> Generator:
        import diffusers

        try:
            pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True)
        except Exception as error:  # of whichever of its parts can't be loaded
            raise InputError(f"method {spec!r}: diffusers can't load this pipeline: {one_line(error)}") from error
        pipeline.set_progress_bar_config(disable=True)
        return generators.call_pipeline(pipeline.to(default_device()), name=name, arguments=arguments)

    identity = {
        "weights": f"sha256 {folder_hash(folder)}",
        "pipeline": _read_class(folder / "model_index.json"),
        "arguments": json.dumps(arguments, sort_keys=True),
    }
    return Method(name, "pipeline", identity, load, seeds=options.seeds, about={"model": spec})


def _system(spec: str, dtype: Dtype = "float32", compiled: bool = False) -> System:
    return _loaded(spec, dtype, compiled)


@cache  # which would keep a second model for arguments that are left out
def _loaded(spec: str, dtype: Dtype, compiled: bool) -> System:
    system = load_system(spec, dtype=getattr(torch, dtype))
    for parameter in (parameter for part in system.parts().values() for parameter in part.parameters()):
        if parameter.dim() == 4:  # a tenth faster on a CPU
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return system.compile() if compiled else system


@cache
def _weights(spec: str) -> str:
    """A hash of a folder's files; of a hub id's, of the parameters as loaded."""
    name, options = split_options(spec)
    folders = [Path(locate(path)) for path in (name, *(split_weight(one)[0] for one in options.get("lora", ())))]
    if folders[0].is_dir():
        return f"sha256 {' + '.join(map(folder_hash, folders))}"
    digest = hashlib.sha256(_system(spec).fingerprint.encode())
    for key, value in sorted(_system(spec).network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy())
    return f"sha256 of parameters {digest.hexdigest()}"


def _training(spec: str) -> dict[str, str]:
    """The config of the run that wrote a model, where it lies beside it."""
    config = Path(locate(split_options(spec)[0])).parent / "config.yaml"
    try:
        return {"training config": config.read_text(encoding="utf-8")} if spec != "tiny" else {}
    except (OSError, UnicodeDecodeError):
        return {}


def _read_class(index: Path) -> str:
    name = read_object(index).get("_class_name")
    if not isinstance(name, str):
        raise InputError(f"{index}: _class_name is {str(name)[:60]}; expected the name of a diffusers pipeline")
    return name


def _native_size(spec: str) -> Size | None:
    """Pixels that a method was made for: a model's training size, or a finished video's own."""
    kind = kind_of(spec)
    if kind == "checkpoint":
        return _system(spec).size
    if kind == "videos":
        folder = Path(spec).expanduser()
        info = probe(min(file for file in folder.rglob("*") if file.suffix.lower() in VIDEO_EXTENSIONS))
        return info.height, info.width
    return None
