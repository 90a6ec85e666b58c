"""The plan of a training: memory against a real step's, disk against real files, and the smallest changes that fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch._subclasses.fake_tensor import FakeTensorMode

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_shapes, load_system
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.models.quantization import repeated_blocks
from contrastive_i2v.models.wan import Wan, WanConfig
from contrastive_i2v.training.batches import build_loader, encode_dataset
from contrastive_i2v.training.config import LossConfig, OptimizerConfig, OwnSamplesConfig, TrainConfig
from contrastive_i2v.training.live_bytes import LiveBytes
from contrastive_i2v.training.plan import Needs, Planner, cache_bytes, seconds_a_step
from contrastive_i2v.training.recipes import RECIPES
from contrastive_i2v.training.trainer import Trainer

TINY = RECIPES["tiny-contrastive"]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one precision a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def measured(config: TrainConfig) -> tuple[int, int]:
    """Bytes of a trainer's tensors that stay from step to step, and the most that a step adds."""
    trainer = Trainer(config)
    loader = iter(build_loader(trainer.dataset, config, trainer.accelerator, step=0))
    first, second = (list(islice(loader, config.gradient_accumulation)) for _ in range(2))
    trainer._train_step(first)  # moments are made at the first
    optimizer = getattr(trainer.state.optimizer, "optimizer", trainer.state.optimizer)
    with LiveBytes() as memory:
        for part in trainer.system.parts().values():
            for tensor in (*part.parameters(), *part.buffers()):
                memory.add(tensor)
        for tensor in (value for values in optimizer.state.values() for value in values.values()):
            memory.add(tensor)
        for tensor in trainer.state.ema.shadow_params if trainer.state.ema else ():
            memory.add(tensor)
        for bank in trainer.candidates.memory.values():
            memory.add(bank.queue)
        stays = memory.peak = memory.live
        trainer._train_step(second)
    return stays, memory.peak - stays


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_checkpointing": True, "ema_decay": 0.0},
        {"mixed_precision": "bf16"},
        {"gradient_accumulation": 3, "batch_size": 2},
        {"gradient_accumulation": 3, "batch_size": 2, "gradient_cache": True},
        {"lora": AdapterConfig(rank=4)},
        {"lora": AdapterConfig(rank=4, base_dtype="int8")},
        {"lora": AdapterConfig(rank=4, base_dtype="bfloat16"), "gradient_checkpointing": True},
        {"loss": LossConfig(input_weight=0.1, memory_bank=64)},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_a_step_needs_what_was_planned(train_config: TrainConfig, clips: Path, changes: dict[str, Any]) -> None:
    data = replace(train_config.data, resolution=64)
    config = replace(TINY, output=train_config.output, batch_size=4, mixed_precision="no", data=data)
    config = replace(config, **changes)
    stays, step = measured(config)
    needs = Planner("cpu").needs(config)
    assert needs.total - needs.step == pytest.approx(stays, rel=2e-3)
    assert needs.step == pytest.approx(step, rel=0.03)
    assert max(needs.gradients, needs.kept) <= needs.step


def test_configs_alone_are_enough(pipeline_folder: Path, train_config: TrainConfig, tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(
        pipeline_folder, configs, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer", "model_index.json")
    )
    assert not any((configs / "tokenizer").glob("*"))
    plan = Planner("cpu")
    needs = plan.needs(replace(train_config, model=str(configs)))
    assert needs == plan.needs(train_config)
    system = load_system(pipeline_folder)
    assert needs.parameters == needs.trained == sum(one.numel() for one in system.network.parameters())
    with pytest.raises(InputError, match="lacks tokenizer"):
        load_system(configs)  # once shapes alone were loaded, weights are asked for again
    for part in ("unet", "vae"):
        shutil.rmtree(configs / part)
        with pytest.raises(InputError, match=part):
            plan.needs(replace(train_config, model=str(configs)))


@pytest.mark.slow
def test_every_system_is_planned() -> None:
    for name in ("tiny-consisti2v", "tiny-emu-video/image"):
        config = replace(RECIPES[name], batch_size=2)
        needs = Planner("cuda").needs(config)
        shapes = load_shapes(config.model, config.system)
        assert needs.parameters == sum(one.numel() for one in shapes.network.parameters())
        assert 0 < needs.gradients < needs.step and needs.copies > 0


def test_what_stays_is_arithmetic() -> None:
    plan = Planner("cuda")

    def needs(**changes: Any) -> Needs:
        return plan.needs(replace(TINY, **changes))

    plain = needs()
    assert (plain.optimizer, plain.average, plain.host) == (8 * plain.trained, 4 * plain.trained, 0)
    away = needs(ema_on_cpu=True)
    assert (away.average, away.host, away.total) == (0, 8 * plain.trained, plain.total - 4 * plain.trained)
    eight = needs(optimizer=OptimizerConfig(eight_bit=True))
    assert 2 * plain.trained < eight.optimizer < 2.3 * plain.trained and eight.step == plain.step
    lora = needs(lora=AdapterConfig(rank=4))
    assert lora.trained == lora.gradients / 4 < plain.trained / 50 and lora.weights > plain.weights
    assert (plain.frozen, plain.reference, plain.buckets) == (0, 0, 0) and 0 < plain.offloaded < plain.encoders
    own = needs(loss=LossConfig(own_weight=0.3), own_samples=OwnSamplesConfig(contrast_share=0.5))
    assert own.reference == plain.weights and own.total == plain.total + plain.weights
    plan.processes = 2
    several = needs()
    assert several.buckets == plain.gradients and several.total == plain.total + plain.gradients


@pytest.mark.parametrize(("storage", "size"), [("bfloat16", 2), ("int8", 1), ("nf4", 0.5625)])
def test_rounded_and_offloaded_weights_are_arithmetic(
    storage: Any, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if storage == "nf4":
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(Planner, "_measured", lambda *_: (0, 0, 0))
    plan = Planner("cuda")

    def needs(**changes: Any) -> Needs:
        options = {"gradient_checkpointing": True, "lora": AdapterConfig(rank=4)}
        return plan.needs(replace(TINY, **{**options, **changes}))

    system = load_system("tiny", device="cpu")
    blocks = list(repeated_blocks(system.network).values())
    linear = [[module for module in block.modules() if isinstance(module, torch.nn.Linear)] for block in blocks]
    numbers = [[layer.weight.numel() for layer in layers] for layers in linear]
    scales = [[4 * layer.out_features * (storage == "int8") for layer in layers] for layers in linear]
    whole, rounded = needs(), needs(lora=AdapterConfig(rank=4, base_dtype=storage))
    saved = sum(map(sum, numbers)) * (4 - size) - sum(map(sum, scales))
    assert rounded.weights == whole.weights - saved and rounded.parameters == whole.parameters
    away = needs(offload_blocks=True)
    sizes = [sum(one.nbytes for one in block.parameters()) for block in blocks]
    assert away.weights == whole.weights - sum(sizes) + max(sizes)
    assert away.offloaded == whole.offloaded + sum(sizes)
    both = needs(offload_blocks=True, lora=AdapterConfig(rank=4, base_dtype=storage))
    assert both.weights < min(away.weights, rounded.weights) and both.total < rounded.total
    with pytest.raises(InputError, match="offload_blocks: is for one process"):
        Planner("cuda", processes=2).needs(
            replace(TINY, gradient_checkpointing=True, lora=AdapterConfig(rank=4), offload_blocks=True)
        )


def test_encoders_count_while_they_encode_and_layer_by_layer_count_less() -> None:
    plan = Planner("cuda")
    system = load_system("tiny", device="cpu")
    layers = [layer for part in (system.text_encoder, system.vae) for layer in part.modules()]  # type: ignore[attr-defined]
    largest = max(sum(one.nbytes for one in layer.parameters(recurse=False)) for layer in layers)
    config = replace(TINY, batch_size=1)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory:
        for part in system.parts().values():
            part._apply(torch.empty_like)
        before = memory.peak = memory.live
        with torch.no_grad():
            system.codec.encode(torch.empty(1, 2, 3, 64, 64))
    whole, away = plan.needs(config), plan.needs(replace(config, offload_encoders=True))
    assert whole.encoders == pytest.approx(whole.offloaded + memory.peak - before, rel=0.01)
    assert away == replace(whole, encoders=whole.encoders - whole.offloaded + largest)


def test_what_encoding_needs_is_made_less_first_and_last() -> None:
    class Encoding(Arithmetic):
        def needs(self, config: TrainConfig) -> Needs:
            half = getattr(config.system, "text_dtype", None)
            return replace(super().needs(config), encoders=300 if config.offload_encoders else 700 if half else 1300)

    plan, wan = Encoding("cuda"), replace(BATCHES, batch_size=1, loss=LossConfig(target_weight=0.0))
    for config, limit, expected in (
        (replace(wan, system=WanConfig()), 700, ["--system.text-dtype bfloat16"]),
        (replace(wan, system=WanConfig()), 600, ["--offload-encoders"]),
        (replace(wan, system=WanConfig(text_dtype="bfloat16")), 600, ["--offload-encoders"]),
        (wan, 700, ["--offload-encoders"]),  # a system without that option
        (FULL, 1200, ["--optimizer.eight-bit", "--gradient-checkpointing", "--lora.rank 16", "--offload-encoders"]),
    ):
        changes, fits = plan.fitting(config, limit)
        assert fits and [change.options for change, _ in changes][-1] == expected[-1]
        assert config is FULL or [change.options for change, _ in changes] == expected


def test_autocast_on_cuda_normalises_in_float32_and_keeps_copies() -> None:
    on_cpu, on_cuda = (Planner(device).needs(replace(TINY, mixed_precision="bf16")) for device in ("cpu", "cuda"))  # type: ignore[arg-type]
    whole = Planner("cuda").needs(replace(TINY, mixed_precision="no"))
    assert Planner("cuda").needs(TINY) == on_cuda  # auto
    assert on_cpu.kept < on_cuda.kept < whole.kept
    assert on_cuda.copies == on_cpu.copies and on_cuda.copies == pytest.approx(whole.weights / 2, rel=0.01)
    assert whole.copies == 0


class Arithmetic(Planner):
    """Needs that are easy to add up, for the search alone: 400 of weights, and what is trained of them."""

    adapts = True

    def needs(self, config: TrainConfig) -> Needs:
        if config.lora.rank and not self.adapts:
            raise InputError("lora.rank: no layer is left to adapt")
        trained = 4 if config.lora.rank else 400
        weights = {"float32": 400, "bfloat16": 300, "int8": 250, "nf4": 225}[config.lora.base_dtype]
        activations = config.batch_size * (100 if config.mixed_precision == "no" else 60)
        kept = activations // 4 if config.gradient_checkpointing else activations
        return Needs(
            parameters=100,
            trained=trained // 4,
            weights=weights // 2 if config.offload_blocks else weights,
            reference=0,
            frozen=0,
            encoders=0,
            optimizer=trained // 2 if config.optimizer.eight_bit else 2 * trained,
            average=0 if config.ema_on_cpu or not config.ema_decay else trained,
            banks=0,
            gradients=trained,
            buckets=0,
            kept=kept,
            copies=0,
            step=kept + trained * (config.gradient_accumulation > 1),
            host=0,
            offloaded=0,
        )


FULL = TrainConfig(ema_decay=0.9, mixed_precision="no")  # 400 + 800 + 400 + 1600
BATCHES = replace(  # 400 + 8 + 4 + 240
    FULL, mixed_precision="bf16", gradient_checkpointing=True, ema_on_cpu=True, lora=AdapterConfig(rank=2)
)
SMALLEST = "--batch-size 1 --gradient-accumulation 16"


@pytest.mark.parametrize(
    ("config", "limit", "expected", "total"),
    [
        (FULL, 3200, [], 3200),
        (FULL, 3199, ["--mixed-precision bf16"], 2560),
        (FULL, 2559, ["--mixed-precision bf16", "--optimizer.eight-bit"], 1960),
        (FULL, 1600, ["--mixed-precision bf16", "--optimizer.eight-bit", "--ema-on-cpu"], 1560),
        # the others had made it 840, and it fits without them
        (FULL, 1500, ["--optimizer.eight-bit", "--gradient-checkpointing"], 1400),
        # a smaller batch would have kept the gradients
        (FULL, 700, ["--mixed-precision bf16", "--gradient-checkpointing", "--lora.rank 16"], 652),
        (BATCHES, 540, ["--batch-size 8 --gradient-accumulation 2 --gradient-cache"], 532),
        (BATCHES, 290, [f"{SMALLEST} --gradient-cache", "--lora.base-dtype int8"], 277),
        (BATCHES, 200, [f"{SMALLEST} --gradient-cache", "--lora.base-dtype nf4", "--offload-blocks"], 139),
        (BATCHES, 440, ["--optimizer.eight-bit", "--batch-size 2 --gradient-accumulation 8 --gradient-cache"], 436),
    ],
)
def test_the_smallest_changes_that_fit(config: TrainConfig, limit: int, expected: list[str], total: int) -> None:
    plan = Arithmetic("cuda")
    changes, fits = plan.fitting(config, limit)
    assert fits and [change.options for change, _ in changes] == expected
    assert ([needs.total for _, needs in changes] or [plan.needs(config).total])[-1] == total


def test_what_nothing_helps_is_said_with_the_least() -> None:
    changes, fits = Arithmetic("cuda").fitting(FULL, 1)
    assert not fits and [change.options for change, _ in changes][-3:] == [
        "--lora.rank 16",
        "--lora.base-dtype nf4",
        "--offload-blocks",
    ]
    assert len(changes) == 7
    plan = Arithmetic("cpu")
    plan.adapts = False
    changes, fits = plan.fitting(replace(FULL, loss=LossConfig(target_weight=0.0)), 1)
    assert not fits and [change.options for change, _ in changes] == [  # 8-bit moments are CUDA's
        "--mixed-precision bf16",
        "--gradient-checkpointing",
    ]
    noise_alone = replace(BATCHES, loss=LossConfig(target_weight=0.0))
    changes, fits = Arithmetic("cpu").fitting(noise_alone, 540)
    assert fits and [change.options for change, _ in changes] == ["--batch-size 8 --gradient-accumulation 2"]


def test_the_cache_is_as_large_as_its_files_will_be(train_config: TrainConfig) -> None:
    count, planned = cache_bytes(train_config, load_shapes(train_config.model, train_config.system))
    Trainer(replace(train_config, steps=1))
    files = list(train_config.data.cache_dir.rglob("*.safetensors"))
    assert count == len(files) == 6
    assert planned == pytest.approx(sum(file.stat().st_size for file in files), rel=0.01)


def test_the_cache_of_a_system_that_sees_pixels_holds_its_images_too(train_config: TrainConfig, tmp_path: Path) -> None:
    Wan.random(WanConfig()).save(tmp_path / "wan")
    frames = FramesConfig(frame_rate=12.0, offset_std=0.0)
    data = replace(train_config.data, resolution=32, frames=frames, cache_dir=tmp_path / "latents")
    for dtype in (None, "bfloat16"):
        system = WanConfig(text_dtype=dtype)  # type: ignore[arg-type]
        config = replace(train_config, model=str(tmp_path / "wan"), system=system, data=data)
        shutil.rmtree(data.cache_dir, ignore_errors=True)
        _, planned = cache_bytes(config, load_shapes(config.model, config.system))
        encode_dataset(data, load_system(config.model, system, device="cpu"), seed=0, skipped_file=tmp_path / "skipped")
        sizes = [file.stat().st_size for file in data.cache_dir.rglob("*.safetensors")]
        assert len(sizes) == 6 and planned == pytest.approx(sum(sizes), rel=0.01)


def test_a_probe_times_real_steps(train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    system = load_system(train_config.model)
    before = [parameter.clone() for parameter in system.network.parameters()]
    seconds = seconds_a_step(replace(train_config, gradient_accumulation=2), system, 2, torch.device("cpu"))
    assert 0 < seconds < 60
    moved = [not torch.equal(a, b) for a, b in zip(before, system.network.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
