"""LoRA: low-rank adapters of a system's network, by peft: added for training, saved by themselves, merged when opened.

h = W x + alpha / rank B A x, A [rank, in] and B [out, rank], B = 0 at the start; W stays as it is. Hu et al., "LoRA:
Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1.

An adapter's folder holds `pytorch_lora_weights.safetensors`, the part of the UNet or transformer, which
`load_lora_weights` of diffusers' pipelines opens; `beside.safetensors`, what that format has no place for: adapters of
other layers, and modules that training had to add to the base, trained in full or, under adapters of their own, as they
began; and `system.json`, which names the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contrastive_i2v.errors import InputError, check_fields, one_line
from contrastive_i2v.files import file_hash
from contrastive_i2v.models.loading import TINY, hash_tensor, locate
from contrastive_i2v.models.quantization import Storage, quantize
from contrastive_i2v.randomness import seeded
from contrastive_i2v.system import Adapter, System, write_model

UNET, BESIDE = "pytorch_lora_weights.safetensors", "beside.safetensors"
LOW_RANK = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters in place of full fine-tuning; what the base lacks is trained in full beside them. A system that
    trains nothing else, as Emu Video's video stage, has the adapters there."""

    rank: int = 0
    """Of each adapter; 4 to 128 are usual, 0 = full fine-tuning."""
    alpha: int | None = None
    """Adapters are scaled by alpha / rank; None = rank."""
    targets: tuple[str, ...] | None = None
    """Linear and Conv2d layers by the ends of their names, which may hold * and ?; None = the system's own: the
    projections of its attention."""
    base_dtype: Literal["float32"] | Storage = "float32"
    """What the frozen weights of the linear layers in the network's repeated blocks are kept in: 4, 2, 1 or 0.56 bytes
    each (nf4 needs bitsandbytes). The adapter is merged into the weights as they were."""

    def __post_init__(self) -> None:
        check_fields(self, {"rank": 0}, positive=("alpha",))
        if self.targets is not None and not self.targets:
            raise InputError("lora.targets: expected one at least, got none")
        if not self.rank and (self.alpha, self.targets) != (None, None):
            raise InputError("lora: alpha and targets are of adapters, and rank=0 trains none; expected a rank above 0")
        if not self.rank and self.base_dtype != "float32":
            raise InputError(
                f"lora.base_dtype={self.base_dtype}: is of frozen weights, and with rank=0 all are trained; expected a "
                "rank above 0"
            )


class LoraTraining:
    """Adapters in a system's network, in place, ready to be trained.

    Args:
        config: rank > 0.
        base: the name under which the system was opened.
        seed: what A starts with is a function of it.

    Raises:
        InputError: targets that match no layer, or nothing but what is trained in full.
    """

    def __init__(self, system: System, config: AdapterConfig, *, base: str, seed: int) -> None:
        import peft  # takes a second

        self.system = system
        located = locate(base)
        self.base = "tiny" if located == str(TINY) else str(Path(located).resolve()) if Path(located).is_dir() else base
        self.base_hash = base_hash(system)
        self.rank, self.alpha = config.rank, config.alpha or config.rank
        names = _targets(system, config.targets or system.lora_targets)
        trainable = {id(parameter) for parameter in system.trainable()}
        self.added = {
            name: parameter
            for name, parameter in system.network.named_parameters()
            if id(parameter) in trainable and _is_added(system, name)
        }
        self.full = {name: value for name, value in self.added.items() if name.rpartition(".")[0] not in names}
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seeded(seed, "lora").initial_seed())
            peft.inject_adapter_in_model(
                peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=names), system.network
            )
        if config.base_dtype != "float32":
            quantize(system.network, config.base_dtype, but=lambda name: ".lora_" in name or _is_added(system, name))

    def trainable(self) -> list[nn.Parameter]:
        """The adapters, and what is trained in full beside them."""
        adapters = [value for name, value in self.system.network.named_parameters() if ".lora_" in name]
        return [*adapters, *self.full.values()]

    def save(self, folder: Path) -> None:
        """Write a folder that `load_system` opens. Raises InputError naming the folder when the disk refuses."""
        from diffusers import loaders
        from peft import get_peft_model_state_dict

        adapters: dict[str, Tensor] = get_peft_model_state_dict(self.system.network, save_embedding_layers=False)
        module = self.system.lora_module
        main = {name.removeprefix(f"{module}."): value for name, value in adapters.items() if _is_in(module, name)}
        beside = {name: value for name, value in adapters.items() if not _is_in(module, name)} | self.added
        about = {"r": self.rank, "lora_alpha": self.alpha, "target_modules": _adapted(main)}

        def write(part: Path) -> None:
            if main:
                save = getattr(loaders, self.system.lora_loader).save_lora_weights
                save(part, **{f"{module}_lora_layers": main, f"{module}_lora_adapter_metadata": about})
            if beside:
                whole = {name: value.detach().cpu().contiguous() for name, value in beside.items()}
                save_file(whole, part / BESIDE, metadata={"format": "pt"})

        write_model(folder, write)
        written = [name for name, values in ((UNET, main), (BESIDE, beside)) if values]
        said = Adapter(
            base=self.base,
            base_hash=self.base_hash,
            rank=self.rank,
            alpha=self.alpha,
            files={name: file_hash(folder / name) for name in written},
        )
        self.system.save_description(folder, said)


def merge_adapters(system: System, adapters: Sequence[tuple[Path, Adapter, float]]) -> None:
    """Add the change that each adapter's training made to its base, times a weight, to a system that is this base, in
    place: W + sum of weight alpha / rank B A, and p + sum of weight (p_trained - p) for what was trained in full.

    Args:
        adapters: folder, what its `system.json` says, and weight of each.

    Raises:
        InputError: adapters of another base, and files that aren't what training wrote.
    """
    found = base_hash(system)
    start = {name: value.clone() for name, value in system.network.named_parameters() if _is_added(system, name)}
    for folder, adapter, weight in adapters:
        if adapter.base_hash != found:
            raise InputError(
                f"{folder}: was trained on {adapter.base!r}, and the weights or the form of the model here are others; "
                "expected the model as it was then"
            )
        tensors = _read(folder, adapter)
        low_rank = {name: value for name, value in tensors.items() if name.endswith(LOW_RANK)}
        try:
            _merge_low_rank(system.network, low_rank, adapter, weight)
            for name in tensors.keys() - low_rank.keys():
                system.network.get_parameter(name).data += weight * (tensors[name] - start[name])
        except (RuntimeError, ValueError, AttributeError, KeyError) as error:
            raise InputError(f"{folder}: this adapter doesn't fit its base ({one_line(error)})") from error


def _read(folder: Path, adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of an adapter's files by the names of the network. Raises InputError naming the file."""
    tensors: dict[str, Tensor] = {}
    for name in sorted({UNET, BESIDE} & adapter.files.keys()):
        try:
            if file_hash(folder / name) != adapter.files[name]:
                raise ValueError("its checksum isn't the one in system.json")
            tensors |= load_file(folder / name)
        except (ValueError, OSError, SafetensorError) as error:
            raise InputError(
                f"{folder / name}: isn't what training wrote ({one_line(error)}); copy the adapter again"
            ) from error
    return tensors


def _merge_low_rank(network: nn.Module, tensors: dict[str, Tensor], adapter: Adapter, weight: float) -> None:
    import peft
    from peft.tuners.lora import LoraLayer

    layers = _adapted(tensors)
    if any(len(tensors[f"{layer}{LOW_RANK[0]}"]) != adapter.rank for layer in layers):
        raise ValueError(f"rank {adapter.rank} isn't that of its files")
    config = peft.LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=layers)
    model: Any = peft.LoraModel(network, config, "default")
    taken: Any = peft.set_peft_model_state_dict(network, tensors)
    if taken.unexpected_keys:
        raise ValueError(f"there is no {taken.unexpected_keys[0]}")
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", weight)
    model.merge_and_unload()


def base_hash(system: System) -> str:
    """sha256 over the network's parameters (as float32), but for those of modules that its base doesn't have, and over
    what makes latents and texts; "" where there are shapes alone."""
    if system.device.type == "meta":
        return ""
    total = hashlib.sha256(system.fingerprint.encode())
    for name, value in sorted(system.network.named_parameters()):
        if not _is_added(system, name):
            hash_tensor(total, name, value)
    return total.hexdigest()


def _targets(system: System, patterns: Sequence[str]) -> list[str]:
    """The layers that end as a pattern says, among those that training moves and the base has, or where it has none of
    these, among the new ones. Those that temporal layers hook onto are none: an adapter would come after these."""
    trainable = {id(parameter) for parameter in system.trainable()}
    layers = [
        name
        for name, module in system.network.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d) and id(module.weight) in trainable and not module._forward_hooks
    ]
    layers = [name for name in layers if not _is_added(system, name)] or layers
    if not layers:
        raise InputError(
            f"lora.rank: {system.config.kind} trains no Linear or Conv2d layer of this model that could be adapted; "
            "expected 0"
        )
    found = {pattern: [name for name in layers if fnmatchcase(f".{name}", f"*.{pattern}")] for pattern in patterns}
    if missed := [pattern for pattern, names in found.items() if not names]:
        ends = sorted({_end(name) for name in layers})
        raise InputError(f"lora.targets: no layer is named {' or '.join(missed)}; there are {', '.join(ends)}")
    return sorted({name for names in found.values() for name in names})


def _end(name: str) -> str:
    """The last part of a layer's name that isn't a number, and what follows it."""
    parts = name.split(".")
    start = max((place for place, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[start:])


def _adapted(tensors: dict[str, Tensor]) -> list[str]:
    """The layers that have an adapter among tensors."""
    return sorted(name.removesuffix(LOW_RANK[0]) for name in tensors if name.endswith(LOW_RANK[0]))


def _is_added(system: System, name: str) -> bool:
    return any(_is_in(module, name) for module in system.added)


def _is_in(module: str, name: str) -> bool:
    return f"{name}.".startswith(f"{module}.")
