"""Finding the parts of a diffusers folder or hub id, with errors a user can act on. Nothing is unpickled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import huggingface_hub
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError

from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.system import DESCRIPTION

TINY = Path(__file__).parent / "tiny"

STABLE_DIFFUSION: dict[str, tuple[str, str | None]] = {
    "vae": ("config.json", "diffusion_pytorch_model"),
    "unet": ("config.json", "diffusion_pytorch_model"),
    "text_encoder": ("config.json", "model"),
    "tokenizer": ("", None),
    "scheduler": ("scheduler_config.json", None),
}
"""The parts of a Stable Diffusion folder: part -> (file that must be there, stem of its safetensors or None)."""


def locate(name: str | Path) -> str:
    """Turn `"tiny"`, a folder or a hub id into what `from_pretrained` takes: a folder's path, or the id.

    A local folder goes first; what else has the form owner/name is a hub id. A run's folder stands for its model.

    Raises:
        InputError: the path is a file, or it doesn't exist.
    """
    if name == "tiny":
        return str(TINY)
    path = Path(name).expanduser()
    if path.is_dir():
        is_run = (path / "model" / DESCRIPTION).exists()
        return str(path / "model" if is_run else path)
    if path.is_file():
        raise InputError(
            f"model {str(name)!r} is a file; expected a diffusers folder (vae/, unet/, text_encoder/, "
            "tokenizer/, scheduler/). Convert a single-file checkpoint with diffusers: "
            "StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)"
        )
    text = str(name)
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1:
        raise InputError(
            f"model {text!r} does not exist; expected 'tiny', a diffusers folder, or a hub id like "
            "'stable-diffusion-v1-5/stable-diffusion-v1-5'"
        )
    return text


def split_options(name: str | Path) -> tuple[str, dict[str, Any]]:
    """`"runs/mine?frame_init=false&steps=4"` -> the name, and options as YAML values; most names have none.

    `lora=PATH` or `lora=PATH=WEIGHT`, as often as there are adapters, is a list of these texts.
    """
    source, _, query = str(name).partition("?")
    options: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if key == "lora" and equals:
            options.setdefault(key, []).append(value)
            continue
        try:
            options[key.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise InputError(f"model {str(name)!r}: expected NAME?OPTION=VALUE&OPTION=VALUE, got {part!r} in it")
    return source, options


def with_adapters(name: str, adapters: Sequence[str]) -> str:
    """A model's name with adapters, PATH or PATH=WEIGHT each, as options that `split_options` takes apart."""
    options = "&".join(f"lora={adapter}" for adapter in adapters)
    return f"{name}{'&' if '?' in name else '?'}{options}" if options else name


def split_weight(adapter: str) -> tuple[str, float]:
    """PATH or PATH=WEIGHT -> the path, and the weight or 1. Raises InputError for a weight that is no number."""
    path, equals, weight = adapter.rpartition("=")
    if not equals or Path(adapter).expanduser().exists():
        return adapter, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"lora {adapter!r}: expected PATH or PATH=WEIGHT with a number, got {weight!r}")
    return path, value


def reach(source: str) -> str:
    """What `locate` found, as it is: a folder, or an id that the hub answers for. Where the hub doesn't answer, the
    folder of what was downloaded before.

    One attempt says it: the hub's own downloads would repeat theirs for 24 s, each file anew.

    Raises:
        InputError: no answer, and nothing downloaded.
    """
    if Path(source).is_dir():
        return source
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(source, DESCRIPTION), timeout=10)
    except HfHubHTTPError:  # it does answer: no such file, no such model, or no right to see it
        return source
    except Exception as error:  # of whichever library the hub's connections are made with
        try:
            return str(huggingface_hub.snapshot_download(source, local_files_only=True))
        except OSError:
            raise not_fetched("any file", source, error) from error
    return source


def downloaded(source: str, parts: Sequence[str]) -> str:
    """The folder of what `reach` found, a hub id's with these parts, or files PART/NAME; within `without_weights` with
    their configs alone. Raises InputError."""
    if Path(source).is_dir():
        return source
    files = "*.json" if _WITHOUT_WEIGHTS.get() else "*"
    wanted = ["model_index.json", *(part if "/" in part else f"{part}/{files}" for part in parts)]
    try:
        return str(huggingface_hub.snapshot_download(source, allow_patterns=wanted))
    except Exception as error:  # of whichever library the hub's connections are made with
        raise not_fetched(" and ".join(parts), source, error) from error


def not_fetched(what: str, source: str, error: Exception) -> InputError:
    """The error of a hub id."""
    return InputError(
        f"could not get {what} of model {source!r} from the hub: {one_line(error)}. Check the id and the "
        "connection, or download it elsewhere (`hf download <id> --local-dir <folder>`) and pass that "
        "folder; 'tiny' needs no download"
    )


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object that a file of a model holds. Raises InputError naming the file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: can't be read ({one_line(error)}); expected the JSON that diffusers writes"
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            f"{file}: can't be read, it holds a {type(values).__name__}; expected a JSON object, as diffusers writes"
        )
    return values


_WITHOUT_WEIGHTS = ContextVar("without weights", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Within it modules are made of their configs alone, on the device "meta": shapes, without weights or the files
    that hold them, nor a tokenizer's."""
    token = _WITHOUT_WEIGHTS.set(True)
    try:
        yield
    finally:
        _WITHOUT_WEIGHTS.reset(token)


class ShapesTokenizer:
    """What stands in for a tokenizer where shapes alone are asked for: every prompt is padding."""

    model_max_length = 1 << 30

    def __call__(self, prompts: Sequence[str], *, max_length: int, **options: Any) -> Any:
        """Ids `[N, max_length]` and their mask."""
        ids = torch.zeros(len(prompts), max_length, dtype=torch.long)
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))


def load_tokenizer(cls: Any, source: str) -> Any:
    """The tokenizer of a folder or hub id."""
    return ShapesTokenizer() if _WITHOUT_WEIGHTS.get() else load_part(cls.from_pretrained, source, "tokenizer")


def load_part(load: Callable[..., Any], source: str, part: str, **kwargs: Any) -> Any:
    """`load(source, subfolder=part)`; what goes wrong there becomes an InputError with the way out."""
    try:
        return load(source, subfolder=part, **kwargs)
    except Exception as error:  # hub, network, json and safetensors errors share no base class
        reason = one_line(error)
        if Path(source).is_dir():
            raise InputError(f"could not load {part} of model {source!r}: {reason}") from error
        raise not_fetched(part, source, error) from error


def load_weights(cls: Any, source: str, part: str, variant: str | None) -> Any:
    """A module with every parameter from the files: from_pretrained alone leaves missing ones random."""
    if _WITHOUT_WEIGHTS.get():
        with torch.device("meta"):
            if hasattr(cls, "load_config"):  # diffusers'
                return cls.from_config(load_part(cls.load_config, source, part))
            return cls(load_part(cls.config_class.from_pretrained, source, part))
    module, info = load_part(
        cls.from_pretrained, source, part, variant=variant, use_safetensors=True, output_loading_info=True
    )
    missing = sorted(map(str, info["missing_keys"])) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise InputError(
            f"the weights of {part} in model {source!r} lack {len(missing)} parameters its config asks for "
            f"(the first: {missing[0]}); expected files and config of one model: save it again with the "
            "installed diffusers and transformers"
        )
    return module


def hash_tensor(total: Any, name: str, value: torch.Tensor) -> None:
    """Add a tensor's name, shape and values, as float32, to a hash."""
    total.update(f"{name}{tuple(value.shape)}".encode())
    total.update(value.detach().to("cpu", torch.float32).contiguous().numpy().data)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> Any:
    """The value of an option, or None where it is None. Raises InputError for none of the choices."""
    if value is not None and value not in choices:
        raise InputError(f"{name}={value}: expected one of {', '.join(choices)}")
    return value


def save_pipeline(folder: Path, name: str, parts: Mapping[str, Any], **settings: Any) -> None:
    """Write a diffusers pipeline's folder: `model_index.json` of that class, and its parts, None = absent.

    (The pipeline's own save_pretrained would change the scheduler's config.)
    """
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": diffusers.__version__, **settings}
    for part, value in parts.items():
        module, cls = type(value).__module__.split(".")[0], type(value).__name__
        # what stands in for an image processor where there is no torchvision is named as the whole one
        index[part] = [None, None] if value is None else [module, cls.removesuffix("Pil")]
        if value is not None:
            value.save_pretrained(folder / part)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def missing_parts(folder: Path) -> list[str]:
    """The files that a Stable Diffusion folder lacks."""
    return [f"{part}/{file}" for part, (file, _) in STABLE_DIFFUSION.items() if not (folder / part / file).exists()]


def variants(source: str) -> dict[str, str | None]:
    """The weight variant of each part of a Stable Diffusion folder: "fp16" where only that lies there, else None.

    Raises InputError where a folder lacks parts or safetensors; a hub id isn't looked into.
    """
    folder = Path(source)
    if not folder.is_dir() or _WITHOUT_WEIGHTS.get():
        return dict.fromkeys(STABLE_DIFFUSION)
    if missing := missing_parts(folder):
        raise InputError(
            f"model folder {source!r} lacks {', '.join(missing)}; expected what save_pretrained of a "
            "Stable Diffusion 1.x pipeline writes: vae/, unet/, text_encoder/, tokenizer/ and scheduler/"
        )
    return {part: _variant(folder / part, stem) for part, (_, stem) in STABLE_DIFFUSION.items()}


def _variant(part: Path, stem: str | None) -> str | None:
    if stem is None or (part / f"{stem}.safetensors").exists() or (part / f"{stem}.safetensors.index.json").exists():
        return None
    if (part / f"{stem}.fp16.safetensors").exists():
        return "fp16"
    pickled = [file.name for file in sorted(part.iterdir()) if file.suffix in (".bin", ".ckpt", ".pt", ".pth")]
    found = f"found only {', '.join(pickled)}, which would have to be unpickled" if pickled else "found no weights"
    raise InputError(
        f"{str(part)!r} lacks {stem}.safetensors ({found}); load the pipeline in diffusers once and save it "
        "with save_pretrained(folder, safe_serialization=True)"
    )
