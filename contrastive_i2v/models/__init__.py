"""The systems, one file each, and `load_system`, which opens any of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import dacite
import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.models.consisti2v import ConsistI2V
from contrastive_i2v.models.emu_video import EmuVideo
from contrastive_i2v.models.instruct_pix2pix import InstructPix2Pix
from contrastive_i2v.models.loading import check_choice, locate, reach, split_options, split_weight, without_weights
from contrastive_i2v.models.lora import merge_adapters
from contrastive_i2v.models.ltx_video import LTXVideo
from contrastive_i2v.models.offloading import Level, offload_groups
from contrastive_i2v.models.quantization import Storage, quantize
from contrastive_i2v.models.wan import Wan
from contrastive_i2v.system import DESCRIPTION, Adapter, Description, Dtypes, System, SystemConfig, default_device

SYSTEMS: dict[str, type[System]] = {
    "instruct-pix2pix": InstructPix2Pix,
    "consisti2v": ConsistI2V,
    "emu-video": EmuVideo,
    "wan": Wan,
    "ltx-video": LTXVideo,
}
"""Kind -> the system's class. The first one that opens a folder without a `system.json` takes it."""


def load_system(
    name: str | Path,
    config: SystemConfig | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: Dtypes = torch.float32,
) -> System:
    """Open a model: weights, options, window, and how it is sampled.

    Args:
        name: "tiny" (packaged, no download), a folder that training wrote, a diffusers folder, or a hub id; then
            options of the system, adapters with weights, and for sampling `quantize`, what the network's linear weights
            are kept in, and `offload`, whether a block's or a leaf's weights are on the device at a time, as
            "runs/mine?frame_init=false&lora=runs/other=0.5&quantize=int8&offload=leaf".
        config: the kind of system and its options, say for training; None = what the folder says, or the first system
            that opens it.
        device: None = CUDA where there is one, else the CPU.
        dtype: weights are converted to it, whatever the files hold; by part where it is a mapping.

    Raises:
        InputError: nothing there, a folder that no system opens or that holds another one, missing parts, options
            that its weights can't have, or adapters of another model.
    """
    name, options = split_options(name)
    adapters = [split_weight(adapter) for adapter in options.pop("lora", ())]
    storage: Storage | None = check_choice("quantize", options.pop("quantize", None), get_args(Storage))
    level: Level | None = check_choice("offload", options.pop("offload", None), get_args(Level))
    source = reach(locate(name))
    saved = read_description(source)
    if not adapters and not (saved and saved.adapter):
        system = _open(source, saved, config, options, name)
    else:
        system = _open_adapted(source, saved, adapters)
        if config or options:  # a model of another form is made of a whole folder
            with TemporaryDirectory() as folder:
                system.save(folder)
                system = _open(folder, read_description(folder), config, options, name)
    if storage:
        quantize(system.network, storage)
        system.quantized = storage
    where = default_device() if device is None else torch.device(device)
    if level is None:
        return system.to(where, dtype)
    offload_groups(system.to("cpu", dtype), where, level=level)
    return system


def load_shapes(name: str | Path, config: SystemConfig | None = None) -> System:
    """A model without its weights, on the device "meta": a folder needs its configs alone.

    Args and errors as for `load_system`; an adapter is refused too.
    """
    source = reach(locate(split_options(name)[0]))
    saved, options = read_description(source), split_options(name)[1]
    if "lora" in options or (saved and saved.adapter):
        raise InputError(f"model {str(name)!r}: an adapter's shapes are those of its base; expected that model")
    if "offload" in options:
        raise InputError(f"model {str(name)!r}: offload is for sampling; expected the model without it")
    with without_weights():
        return load_system(name, config, device="meta")


def _open(
    source: str, saved: Description | None, config: SystemConfig | None, options: dict[str, Any], name: str
) -> System:
    """The system of a whole model's folder or hub id, in float32 on the CPU."""
    kind = (
        config.kind if config else saved.system.kind if saved else _opens(_looked_into(source)) or next(iter(SYSTEMS))
    )
    if saved and saved.system.kind not in (kind, *SYSTEMS[kind].starts_from):
        raise InputError(f"model {str(name)!r} is of kind {saved.system.kind}; expected {kind}: give another --model")
    wanted = config or (saved.system if saved else SYSTEMS[kind].Config())
    if options:
        wanted = parse_config(asdict(wanted) | options)
    system = SYSTEMS[kind].load(source, wanted, saved.system if saved else None)
    return _describe(system, saved) if saved else system


def _describe(system: System, saved: Description) -> System:
    """The system, sampled as a description says."""
    system.sampler = saved.sampler
    system.size = saved.size or system.size
    system.fps = saved.fps or system.fps
    return system


def _open_adapted(source: str, saved: Description | None, more: Sequence[tuple[str, float]]) -> System:
    """A whole model, or the base of an adapter with that adapter, with more adapters and their weights merged in."""
    folders = [(Path(source), 1.0)] * bool(saved and saved.adapter)
    folders += [(Path(locate(path)), weight) for path, weight in more]
    adapters = [(folder, *_read_adapter(folder), weight) for folder, weight in folders]
    base, form = saved.adapter.base if saved and saved.adapter else source, adapters[0][1]
    try:
        found = reach(locate(base))
        system = _open(found, read_description(found), form.system, {}, base)
    except InputError as error:
        raise InputError(
            f"{folders[0][0]}: an adapter of model {base!r}, which doesn't open: {error}; where that has moved, name "
            "it as the model and this folder as its adapter (--lora)"
        ) from error
    merge_adapters(system, [(folder, adapter, weight) for folder, _, adapter, weight in adapters])
    return _describe(system, saved or form)


def _read_adapter(folder: Path) -> tuple[Description, Adapter]:
    said = read_description(folder) if folder.is_dir() else None
    if said is None or said.adapter is None:
        raise InputError(
            f"{folder}: is no adapter's folder; expected what training with --lora.rank wrote (a hub id has to be "
            "downloaded first)"
        )
    return said, said.adapter


def parse_config(values: Any) -> SystemConfig:
    """The options of a mapping with a `kind`, as config.yaml and system.json hold them. Raises InputError."""
    if isinstance(values, SystemConfig):
        return values
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if kind not in SYSTEMS:
        raise InputError(f"system kind {kind!r} is unknown; expected one of {', '.join(SYSTEMS)}")
    try:
        return dacite.from_dict(SYSTEMS[kind].Config, values, dacite.Config(strict=True, cast=[tuple, float]))
    except dacite.DaciteError as error:
        raise InputError(f"system: {error}") from error


def read_description(source: str | Path) -> Description | None:
    """What `system.json` of a model folder or hub id says; None where there is none. Raises InputError for a damaged
    one."""
    file = Path(source) / DESCRIPTION
    if not Path(source).is_dir():
        try:
            file = Path(huggingface_hub.hf_hub_download(str(source), DESCRIPTION))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
            return None  # none there; an id that can't be reached is named where its weights are asked for
    if not file.is_file():
        return None
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"a {type(values).__name__} is no object")
        rules = dacite.Config(strict=True, cast=[tuple, float], type_hooks={SystemConfig: parse_config})
        return dacite.from_dict(Description, values, rules)
    except (OSError, ValueError, TypeError, RecursionError, dacite.DaciteError) as error:
        raise InputError(
            f"{file}: can't be read ({one_line(error)}); expected what save() of a system writes"
        ) from error


def _looked_into(source: str) -> Path:
    """A folder; of a hub id that with the config of its transformer, by which video transformers are told apart."""
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(huggingface_hub.hf_hub_download(source, "transformer/config.json")).parents[1]
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return Path(source)


def opening_kind(folder: Path) -> str | None:
    """The kind of system that opens a model folder, or None. Raises InputError for a damaged `system.json`."""
    saved = read_description(folder)
    return saved.system.kind if saved else _opens(folder)


def _opens(folder: Path) -> str | None:
    return next((kind for kind in SYSTEMS if SYSTEMS[kind].opens(folder)), None)


__all__ = ["SYSTEMS", "load_shapes", "load_system", "opening_kind", "parse_config", "read_description"]
