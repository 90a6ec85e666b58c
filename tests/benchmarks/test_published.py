"""The published video transformers' configs, and what `plan` says of them beside a count that shares no code with
it: diffusers' transformer alone, adapters by PEFT, tensors without contents, and storages from birth to end."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.published import PUBLISHED, write_configs
from contrastive_i2v.models import load_shapes
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.training.plan import Needs, Planner, Step
from contrastive_i2v.training.recipes import RECIPES

MODELS = {"wan-2.1-1.3b": (480, 832), "wan-2.1-14b": (480, 832), "ltx-video": (480, 704)}
BILLIONS = {
    "wan-2.1-1.3b": 1.419,
    "wan-2.1-1.3b-inp": 1.564,
    "wan-2.1-14b": 16.395,
    "wan-2.2-5b": 5.000,
    "ltx-video": 1.923,
}
FRAMES, RANK = 81, 32


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes(name: str, tmp_path: Path) -> None:
    system = load_shapes(write_configs(tmp_path, name))
    parameters = {part: sum(one.numel() for one in module.parameters()) for part, module in system.parts().items()}
    assert parameters["network"] / 1e9 == pytest.approx(BILLIONS[name], abs=1e-3)
    assert parameters["text_encoder"] / 1e9 == pytest.approx(4.762 if name == "ltx-video" else 5.681, abs=1e-3)
    assert parameters.get("image_encoder", 0) // 10**6 in (0, 630, 631)
    form = getattr(system.config, "image_condition", None)
    assert form == {"wan-2.2-5b": "clean-latent", "ltx-video": None}.get(name, "channels")


class Storages(TorchDispatchMode):
    """The most bytes of storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, storage._cdata)
            self.peak = max(self.peak, sum(self.alive.values()))
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(Tensor, self.see, func(*args, **(kwargs or {})))


def inputs(transformer: Any, frames: int, height: int, width: int) -> dict[str, Any]:
    """What a window of so many frames and pixels is, of batch size 1."""
    config = transformer.config
    if isinstance(transformer, diffusers.LTXVideoTransformer3DModel):
        length, rows, columns = 1 + (frames - 1) // 8, height // 32, width // 32
        tokens = length * rows * columns
        return {
            "hidden_states": torch.empty(1, tokens, 128),
            "encoder_hidden_states": torch.empty(1, 128, 4096),
            "timestep": torch.empty(1, tokens),
            "encoder_attention_mask": torch.ones(1, 128, dtype=torch.bool),
            "num_frames": length,
            "height": rows,
            "width": columns,
        }
    told = {
        "hidden_states": torch.empty(1, 36, 1 + (frames - 1) // 4, height // 8, width // 8),
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, 512, 4096),
    }
    return told | ({"encoder_hidden_states_image": torch.empty(1, 257, 1280)} if config.image_dim else {})


def counted(folder: Path, frames: int, size: tuple[int, int]) -> int:
    """Bytes of the second step of LoRA in bf16 with gradient checkpointing."""
    config = json.loads((folder / "transformer" / "config.json").read_text())
    grows = config.get("in_channels") == 16  # by 4 of a mask and 16 of a latent, trained in full
    with torch.device("meta"):
        cls = getattr(diffusers, config["_class_name"])
        transformer = cls.from_config(config | ({"in_channels": 36} if grows else {})).requires_grad_(False)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        peft.inject_adapter_in_model(peft.LoraConfig(r=RANK, target_modules=targets), transformer)
    transformer.train().enable_gradient_checkpointing()
    with FakeTensorMode(allow_non_fake_inputs=True):
        transformer._apply(lambda one: torch.empty(one.shape, dtype=one.dtype))
        if grows:
            transformer.patch_embedding.requires_grad_(True)
        told = inputs(transformer, frames, *size)
        optimizer = torch.optim.AdamW([one for one in transformer.parameters() if one.requires_grad])
        for _ in range(2):
            with Storages() as storages:
                moments = (value for state in optimizer.state.values() for value in state.values())
                tree_map_only(Tensor, storages.see, [*transformer.parameters(), *moments, told])
                with torch.autocast("cpu", torch.bfloat16):
                    prediction = transformer(**told, return_dict=False)[0]
                prediction.float().square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                del prediction
    return storages.peak


def planned(folder: Path, name: str, frames: int, size: tuple[int, int]) -> Needs:
    """Of LoRA as in `counted`."""
    config = RECIPES["ltx-video" if name == "ltx-video" else "wan"]
    config = replace(
        config,
        model=str(folder),
        system=replace(config.system, frames=frames),  # type: ignore[call-arg]
        data=replace(config.data, resolution=size),
        lora=AdapterConfig(rank=RANK),
        gradient_accumulation=1,
    )
    return Planner("cuda").needs(config)


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_is_what_is_counted_beside_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Step, "encode", lambda self: None)
    folder = write_configs(tmp_path, name, num_layers=2)
    needs = planned(folder, name, 9, (96, 160))
    assert replace(needs, encoders=0).total == pytest.approx(counted(folder, 9, (96, 160)), rel=0.02)
    parts = load_shapes(folder).parts()
    frozen = [one for part in parts if part != "network" for one in (*parts[part].parameters(), *parts[part].buffers())]
    assert needs.encoders == needs.offloaded == sum(one.nbytes for one in frozen)  # an embedding is there once


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_of_the_whole_model_is_what_is_counted_beside_it(name: str, tmp_path: Path) -> None:
    folder, size = write_configs(tmp_path, name), MODELS[name]
    needs = planned(folder, name, FRAMES, size)
    assert replace(needs, encoders=0).total == pytest.approx(counted(folder, FRAMES, size), rel=0.1)
