"""Finding, hashing and opening weights, with errors a user can act on.

State dicts are safetensors or `torch.load(weights_only=True)`: nothing is unpickled. TorchScript files are the
exception: they hold a program of their own, so `load_script` is for files whose author you trust.
"""

from __future__ import annotations

import importlib
import importlib.resources
import zipfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import file_hash

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")


def describe_file(path: Path) -> str:
    """How a report names a weights file."""
    return f"{path.name}, sha256 {file_hash(path)[:12]}"


def describe_package(package: str, path: Path) -> str:
    """How a report names a weights file that an installed package carries."""
    return f"{package} {metadata.version(package)}, {describe_file(path)}"


def require(module: str, packages: str, extractor: str) -> Any:
    """Import `module`, or raise InputError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"extractor {extractor!r} needs the module {module}, which can't be imported ({error}); "
            f"pip install {packages}"
        ) from error


def package_path(module: str, packages: str, extractor: str, *parts: str) -> Path:
    """A file or folder that an installed package carries."""
    root = importlib.resources.files(require(module, packages, extractor))
    path = Path(str(root.joinpath(*parts)))
    if not path.exists():
        raise InputError(
            f"extractor {extractor!r}: {path} is missing; the installed package is incomplete or of another version: "
            f"pip install --force-reinstall {packages}"
        )
    return path


def existing_file(source: str, extractor: str, expected: str) -> Path:
    """`source` as a file that exists; `expected` says which file that would be and who publishes it."""
    path = Path(source).expanduser()
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"extractor '{extractor}:{source}': {source} {found}; expected {expected}")
    return path


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """A state dict from safetensors or a torch file, without unpickling objects. Raises InputError naming the file."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            _check_not_packed(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # pickle, zip and safetensors errors share no base class
        raise InputError(f"{path}: not readable as a state dict ({one_line(error)})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: expected a state dict (name -> tensor), got {type(state).__name__}")
    return state


def archive_records(path: Path) -> dict[str, int]:
    """The records of a torch file's zip archive and their sizes; none where it is no such archive. Raises InputError
    for a damaged one."""
    if not zipfile.is_zipfile(path):
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            return {record.filename: record.file_size for record in archive.infolist()}
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not readable as a torch file ({one_line(error)})") from error


def _check_not_packed(path: Path) -> None:
    """torch.save stores its tensors as they are. Records that are compressed, or share their bytes, make gigabytes of
    kilobytes."""
    holds, size = sum(archive_records(path).values()), path.stat().st_size
    if holds > size:
        raise InputError(f"{path}: its {size} bytes unpack to {holds}; expected a state dict as torch.save writes it")


def load_state_dict(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy every parameter from `state`; InputError where one is missing, unknown or of another shape.

    Batch norm's counters may be missing: old files lack them and evaluation doesn't read them.
    """
    try:
        missing, unknown = network.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise InputError(f"{path}: doesn't fit {type(network).__name__}: {one_line(error)}") from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unknown:
        problem = f"lacks {missing[0]}" if missing else f"holds an unknown {unknown[0]}"
        raise InputError(
            f"{path}: doesn't fit {type(network).__name__}: it {problem} "
            f"({len(missing)} missing, {len(unknown)} unknown); expected the weights of this network alone"
        )


def load_script(path: Path, device: torch.device) -> Any:
    """A TorchScript module in eval mode. It runs a program from the file: load only files you trust."""
    jit: Any = torch.jit
    try:
        return jit.load(str(path), map_location=device).eval()
    except Exception as error:
        raise InputError(f"{path}: not readable as TorchScript ({one_line(error)})") from error


def load_pretrained(load: Callable[..., Any], source: str, extractor: str) -> Any:
    """`load(source)` of a transformers model, float32 and in eval mode, with every parameter from the files.

    Raises:
        InputError: `source` is neither a folder nor a hub id, can't be loaded, or lacks parameters.
    """
    name = f"extractor '{extractor}:{source}'"
    local = Path(source).expanduser().is_dir()
    if not local and (Path(source).expanduser().is_absolute() or source.startswith(".") or source.count("/") != 1):
        raise InputError(f"{name}: {source!r} is neither a folder that save_pretrained wrote nor a hub id (owner/name)")
    try:
        with torch.random.fork_rng(devices=[]):
            model, info = load(located(source), output_loading_info=True)
    except Exception as error:  # hub, network, json and safetensors errors share no base class
        way_out = "" if local else "; without a connection, download it elsewhere and pass the folder"
        raise InputError(f"{name}: could not be loaded: {one_line(error)}{way_out}") from error
    missing = sorted(map(str, info["missing_keys"])) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise InputError(
            f"{name}: its weights lack {len(missing)} parameters that its config asks for, as {missing[0]}"
        )
    return model.float().eval()


def load_tokenizer(source: str, extractor: str) -> Any:
    """The tokenizer that lies with a transformers model. Raises InputError where there is none."""
    transformers = require("transformers", "transformers", extractor)
    folder = Path(source).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in _VOCABULARIES):
        # from_pretrained would make one up from the config alone, with next to no words
        raise InputError(f"extractor '{extractor}:{source}': no tokenizer; expected {' or '.join(_VOCABULARIES)} there")
    try:
        return transformers.AutoTokenizer.from_pretrained(located(source))
    except Exception as error:
        raise InputError(
            f"extractor '{extractor}:{source}': its tokenizer could not be loaded: {one_line(error)}; "
            "expected the tokenizer's files beside the weights"
        ) from error


def located(source: str) -> str:
    """`source` with ~ expanded where it is a folder, else the hub id as it stands."""
    path = Path(source).expanduser()
    return str(path) if path.is_dir() else source


def describe_pretrained(source: str, model: Any) -> str:
    """Folder name and hash of its weight files, or hub id and commit."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        commit = getattr(model.config, "_commit_hash", None)
        return f"{source} at {commit[:12]}" if commit else source
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return f"{folder.resolve().name}, sha256 {file_hash(*files)[:12]}"
