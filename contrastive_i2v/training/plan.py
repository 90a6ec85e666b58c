"""What a training needs, before anything of it runs, and the smallest changes that make it fit.

The step of `Trainer` is carried out on `FakeTensor`s, which have shapes but no contents, while `LiveBytes` watches;
what stays from step to step is arithmetic. No weights are read, and no GPU is needed to plan for one. Not counted: what
convolutions and matrix products use for themselves, the allocator's gaps, and a GPU's own context (`RESERVED` stands
for these). `benchmarks/plan.py` holds it against measured peaks.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from contrastive_i2v.data.cache import CachedClip, pack_clip
from contrastive_i2v.data.examples import Example, WindowReader
from contrastive_i2v.data.reading import probe_clip
from contrastive_i2v.data.sources import read
from contrastive_i2v.data.types import Clip, Skipped
from contrastive_i2v.data.video import VideoError, as_size
from contrastive_i2v.errors import InputError
from contrastive_i2v.losses import cached_backward
from contrastive_i2v.models import load_shapes
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.models.offloading import offload_parts
from contrastive_i2v.models.quantization import Storage, repeated_blocks
from contrastive_i2v.randomness import seeded
from contrastive_i2v.system import ImageEmbeds, System, Text
from contrastive_i2v.training.config import TrainConfig
from contrastive_i2v.training.inputs import Inputs, blank_image, make_inputs
from contrastive_i2v.training.live_bytes import LiveBytes
from contrastive_i2v.training.own_samples import windows_after
from contrastive_i2v.training.trainer import build_lora, build_optimizer, enable_gradient_checkpointing, place_network

Device = Literal["cpu", "cuda"]
Precision = Literal["no", "fp16", "bf16"]

RESERVED: dict[Device, float] = {"cpu": 0.7e9, "cuda": 1.0e9}
"""Bytes left for what isn't tensors: Python and its libraries, or a GPU's context, its libraries and the allocator."""
BLOCK = 256
"""Numbers that share a scale in 8-bit AdamW; parameters of fewer than 4096 keep moments in float32 (bitsandbytes)."""
PROBED = 200
"""Clips that are looked into for the size of the cache; more are taken to be like these."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Of one process. Bytes, but for the first two."""

    parameters: int
    trained: int
    weights: int
    """Of the network; of blocks that are offloaded, those of the largest one."""
    reference: int
    """Of the network that training started from, where own samples are contrasted."""
    frozen: int
    """Of the autoencoder and the text encoder, where they stay while training: on a CPU, and the autoencoder of
    `loss.alignment_weight`."""
    encoders: int
    """Of both and of what they compute, while they encode a window, before the network comes."""
    optimizer: int
    average: int
    """The moving average, where the network is."""
    banks: int
    """Past latents that stay candidates."""
    gradients: int
    buckets: int
    """Copies of the gradients that several processes exchange."""
    kept: int
    """What one micro-batch's forward pass keeps for the backward pass, autocast's copies of weights included."""
    copies: int
    """Those copies."""
    step: int
    """The most at any time of a step beside what stays: gradients grow while activations go, so it is less than
    both."""
    host: int
    """In the host's memory beside the GPU's: the moving average that is kept there."""
    offloaded: int
    """In the host's memory as well: blocks, and the autoencoder and the text encoder."""

    @property
    def total(self) -> int:
        """The peak of the device's memory."""
        stays = self.weights + self.reference + self.frozen + self.optimizer + self.average + self.banks
        return max(self.encoders, stays + self.buckets + self.step)


@dataclass(frozen=True)
class Change:
    """A change of a config, as options of `train`."""

    options: str
    apply: Callable[[TrainConfig], TrainConfig]


def precision_on(device: Device, config: TrainConfig) -> Precision:
    """What mixed_precision auto is on a CPU, or on a GPU that has bf16."""
    if config.mixed_precision == "auto":
        return "bf16" if device == "cuda" else "no"
    return config.mixed_precision


class Planner:
    """Needs of configs on one kind of device.

    Args:
        build: a config's system without its weights, anew at each call; None = `load_shapes`.
        processes: that share the batches.
    """

    def __init__(
        self, device: Device, build: Callable[[TrainConfig], System] | None = None, processes: int = 1
    ) -> None:
        self.device, self.processes = device, processes
        self.build = build or (lambda config: load_shapes(config.model, config.system))
        self._known: dict[TrainConfig, tuple[int, int]] = {}
        self._encoding: dict[TrainConfig, int] = {}

    def needs(self, config: TrainConfig) -> Needs:
        """What a config needs. Raises InputError as a training would."""
        config = replace(config, mixed_precision=precision_on(self.device, config))
        if config.offload_blocks and self.processes > 1:
            raise InputError("offload_blocks: is for one process")
        step = Step(config, self.build(config))
        trained = [parameter.numel() for parameter in step.trainable]
        average = 4 * sum(trained) if config.ema_decay else 0
        away = config.ema_on_cpu and self.device == "cuda"
        network, on_gpu = step.system.network, self.device == "cuda"
        parts = {name: part for name, part in step.system.parts().items() if part is not network}
        encoders = {name: _bytes(part) for name, part in parts.items()}
        kept, peak, encoding = self._measured(config, step)  # after it, weights that were one are several
        layers = on_gpu and config.offload_encoders
        stay = sum(encoders.values())
        if on_gpu:  # back in the host's memory, but for the autoencoder of a loss on pixels
            stay = encoders.get("vae", 0) if config.loss.alignment_weight and not layers else 0
        blocks = step.block_bytes if config.offload_blocks and on_gpu else [0]
        return Needs(
            parameters=step.parameters,
            trained=sum(trained),
            weights=_bytes(network) - sum(blocks) + max(blocks),
            reference=step.base_bytes if config.loss.own_weight else 0,
            frozen=stay,
            encoders=encoding + (max(map(_layer_bytes, parts.values())) if layers else sum(encoders.values())),
            optimizer=sum(map(_eight_bit, trained)) if config.optimizer.eight_bit else 8 * sum(trained),
            # on a CPU the host's average has the weights' copies beside it
            average=0 if away else average * (1 + config.ema_on_cpu),
            banks=step.bank_bytes,
            gradients=4 * sum(trained),
            buckets=4 * sum(trained) if self.processes > 1 and not config.shard else 0,
            kept=kept,
            # of blocks that are computed again they end with each
            copies=step.copies if config.mixed_precision != "no" and not config.gradient_checkpointing else 0,
            step=peak,
            host=2 * average if away else 0,
            offloaded=sum(blocks) + sum(encoders.values()) - stay,
        )

    def _measured(self, config: TrainConfig, step: Step) -> tuple[int, int, int]:
        """What the forward pass keeps, the step's peak, and what encoding computes beside weights."""
        data = replace(TrainConfig().data, resolution=config.data.resolution)
        encoded = replace(TrainConfig(), model=config.model, system=config.system, data=data)
        key = replace(
            encoded,
            batch_size=config.batch_size,
            gradient_accumulation=min(config.gradient_accumulation, 2),
            gradient_cache=config.gradient_cache,
            mixed_precision=config.mixed_precision,
            gradient_checkpointing=config.gradient_checkpointing,
            lora=config.lora,
            condition_noise=config.condition_noise,
        )
        if key not in self._known:
            if self.device == "cuda" and config.mixed_precision != "no":
                step.normalize_in_float32()
            with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory:
                step.move(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
                for part in step.system.parts().values():
                    for tensor in (*part.parameters(), *part.buffers()):
                        memory.add(tensor)
                before, kept = memory.live, []
                if encoded not in self._encoding:
                    step.encode()
                    self._encoding[encoded] = memory.peak - before
                assert step.inputs  # made here, so that its own peak isn't the step's
                memory.peak = memory.live
                # more micro-batches than two are like the second
                step.run(min(config.gradient_accumulation, 2), lambda: kept.append(memory.live - before))
                self._known[key] = kept[0], memory.peak - before
        return *self._known[key], self._encoding[encoded]

    def fitting(self, config: TrainConfig, limit: float) -> tuple[list[tuple[Change, Needs]], bool]:
        """The smallest changes after which a config needs at most `limit` bytes, with what is needed after each; and
        whether they do. Those that cost least go first; one that the rest does without is left out."""
        chosen: list[Change] = []
        current, fits = config, self.needs(config).total <= limit
        for alternatives in _changes(config, self.device):
            if fits:
                break
            before, found = self.needs(current).total, None
            for change in alternatives:
                try:
                    needs = self.needs(change.apply(current))
                except InputError:  # this model or this loss can't
                    continue
                if needs.total < 0.999 * before:  # less of more than inputs
                    found, fits = change, needs.total <= limit
                if fits:
                    break
            if found is not None:
                chosen, current = [*chosen, found], found.apply(current)
        for change in reversed(chosen[:-1]) if fits else ():
            without = [other for other in chosen if other is not change]
            if self.needs(_applied(config, without)).total <= limit:
                chosen = without
        steps = [_applied(config, chosen[: number + 1]) for number in range(len(chosen))]
        return [(change, self.needs(changed)) for change, changed in zip(chosen, steps, strict=True)], fits


class Step:
    """The step of a training on batches of zeros: with shapes alone to count memory, with contents to take the time."""

    def __init__(self, config: TrainConfig, system: System) -> None:
        self.config, self.system, self.schedule = config, system, system.schedule
        system.size = system.check_size(as_size(config.data.resolution), "data.resolution")
        self.raw_shape = raw_shape(system)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(system)
        self.base_bytes, self.parameters = _bytes(system.network), _count(system.network)
        self.lora = lora = build_lora(system, config)
        trained = lora.trainable() if lora else system.trainable()
        if lora:
            self.parameters += sum(value.numel() for value in trained) - sum(map(Tensor.numel, lora.full.values()))
        system.network.train().requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)

    @property
    def trainable(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.system.network.parameters() if parameter.requires_grad]

    @property
    def block_bytes(self) -> list[int]:
        """Of each of the network's repeated blocks, its frozen weights."""
        blocks = repeated_blocks(self.system.network).values()
        return [sum(one.nbytes for one in block.parameters() if not one.requires_grad) for block in blocks]

    @property
    def bank_bytes(self) -> int:
        """Of the memory banks: latents in bfloat16, an int64 a row."""
        codec, loss, window = self.system.codec, self.config.loss, self.system.window
        frames = 1 if loss.rows == "frame" else len(window.generated)
        height, width = (side // codec.downscale for side in self.system.size)
        banks = sum(weight != 0 for weight in (loss.target_weight, loss.input_weight))
        return banks * loss.memory_bank * (2 * frames * codec.channels * height * width + 8)

    @property
    def copies(self) -> int:
        """Bytes of the weights that autocast keeps in half precision."""
        layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        modules = [module for module in self.system.network.modules() if isinstance(module, layers)]
        return sum(2 * parameter.numel() for module in modules for parameter in module.parameters(recurse=False))

    def move(self, make: Callable[[Tensor], Tensor]) -> None:
        """Put other tensors in place of every one of the system's parts."""
        for part in self.system.parts().values():
            part._apply(make)  # type: ignore[no-untyped-call]

    def normalize_in_float32(self) -> None:
        """As autocast does on CUDA and doesn't on the CPU, which tensors without contents seem to be on."""
        for module in self.system.network.modules():
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                module.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))

    @torch.no_grad()
    def encode(self) -> None:
        """What is made of a window and its prompt before training."""
        system = self.system
        system.encode_text([""])
        frames = 1 + (system.window.frames - 1) * system.codec.temporal_downscale
        system.codec.encode(torch.zeros(1, frames, 3, *system.size, device=system.device))

    @cached_property
    def inputs(self) -> Inputs:
        """Of a micro-batch."""
        config, system, size, device = self.config, self.system, self.config.batch_size, self.system.device
        frames = system.window.frames
        with torch.no_grad():
            text = system.encode_text([""])
        batch = Example(
            raw=torch.zeros(size, frames, *self.raw_shape, device=device),
            present=torch.ones(size, frames, dtype=torch.bool, device=device),
            text={name: value.expand(size, *value.shape[1:]).clone() for name, value in text.items()},
            fps=torch.full((size,), system.fps, device=device),
            group=torch.arange(size, device=device),
            image=blank_image(system, size, device),
        )
        return make_inputs(
            batch,
            system,
            schedule=self.schedule,
            timesteps=config.timesteps,
            conditioning_dropout=config.conditioning_dropout,
            condition_noise=config.condition_noise,
            generator=seeded(config.seed, "plan"),
        )

    def run(self, micro_batches: int, after_forward: Callable[[], object] = lambda: None) -> None:
        """Forward and backward of so many micro-batches, as the config has them.

        Args:
            after_forward: called after each forward pass that has a graph.
        """

        def predict(inputs: Inputs) -> Tensor:
            half = {"no": None, "fp16": torch.float16}.get(self.config.mixed_precision, torch.bfloat16)
            with torch.autocast(self.system.device.type, half or torch.bfloat16, enabled=half is not None):
                prediction: Tensor = self.system.network(inputs.noisy_latents, inputs.timesteps, **inputs.condition)
            if torch.is_grad_enabled():
                after_forward()
            return prediction.float()  # as accelerate does

        def loss(prediction: Tensor) -> Tensor:
            return prediction.square().mean()  # the loss keeps a few copies of the prediction, as this does

        parts = [self.inputs] * micro_batches
        if self.config.gradient_cache:
            cached_backward(predict, parts, loss)
            return
        for part in parts:
            loss(predict(part)).backward()  # type: ignore[no-untyped-call]


def seconds_a_step(config: TrainConfig, system: System, steps: int, device: torch.device) -> float:
    """The median time of a step over a few real ones, after one that warms up: on a batch of zeros, without reading
    data, previews and checkpoints. The system comes on the CPU."""
    step = Step(config, system)
    offload_parts([part for part in system.parts().values() if part is not system.network], device)
    place_network(system.network, config, step.lora, device)
    optimizer = build_optimizer(config, step.trainable, device)
    taken = []
    for _ in range(1 + steps):
        began = time.perf_counter()
        step.run(config.gradient_accumulation)
        nn.utils.clip_grad_norm_(step.trainable, config.optimizer.max_grad_norm).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def raw_shape(system: System) -> torch.Size:
    """What the cache keeps of a frame, `[R, h, w]`."""
    return system.codec.encode(torch.zeros(1, 1, 3, *system.size, device=system.device)).shape[2:]


def cache_bytes(config: TrainConfig, system: System) -> tuple[int, int]:
    """Clips of the data folder, and the bytes of their latents and prompts on disk: exact for the first of them, and
    the others taken to be like these. Raises InputError for a folder that can't be read."""
    clips = read(config.data.path, config.data.source, seed=config.seed).clips
    system.size = as_size(config.data.resolution)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for part in system.parts().values():
            part._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))  # type: ignore[no-untyped-call]
        shape, text, image = raw_shape(system), system.encode_text([""]), blank_image(system, 1, system.device)
    probed = clips[:: max(1, len(clips) // PROBED)]
    sizes = [_clip_bytes(clip, config, system, shape, text, image) for clip in probed]
    return len(clips), round(config.data.keep * len(clips) * sum(sizes) / len(sizes))


def _clip_bytes(
    clip: Clip, config: TrainConfig, system: System, shape: torch.Size, text: Text, image: ImageEmbeds
) -> int:
    """Of the file in the cache; 0 for a clip that gives none."""
    following = windows_after(config.own_samples, system)
    read = WindowReader.of(system, config.data.resolution, config.data.frames, seed=config.seed, following=following)
    try:
        info = probe_clip(clip)
    except VideoError:
        return 0
    drawn = read.draw(clip, info)
    if isinstance(drawn, Skipped):
        return 0
    windows = [read.index(window, 0, 1.0).rows for window in drawn.every]
    rows = sorted({row for window in windows for row in window})

    def zeros(some: Text) -> Text:
        return {name: torch.zeros(value.shape[1:], dtype=value.dtype) for name, value in some.items()}

    images = {window[-1]: zeros(image) for window in windows} if image else {}
    return len(pack_clip(CachedClip(rows, torch.zeros(len(rows), *shape), zeros(text), info, images), clip))


def _changes(config: TrainConfig, device: Device) -> Iterator[list[Change]]:
    """What makes a config need less, that which costs least first; of alternatives the first is the smallest.

    What encoding needs comes first and last: it counts where it is more than the step, which the others make less."""
    encoding = [_change("--offload-encoders", offload_encoders=True)] * (
        device == "cuda" and not config.offload_encoders
    )
    if encoding and getattr(config.system, "text_dtype", "float32") is None:
        half: dict[str, Any] = {"text_dtype": "bfloat16"}
        encoding.insert(0, _change("--system.text-dtype bfloat16", system=replace(config.system, **half)))
    yield encoding
    if precision_on(device, config) == "no":
        yield [_change("--mixed-precision bf16", mixed_precision="bf16")]
    if device == "cuda" and not config.optimizer.eight_bit:
        yield [
            Change(
                "--optimizer.eight-bit",
                lambda one: replace(one, optimizer=replace(one.optimizer, eight_bit=True)),
            )
        ]
    if device == "cuda" and config.ema_decay and not config.ema_on_cpu:
        yield [_change("--ema-on-cpu", ema_on_cpu=True)]
    if not config.gradient_checkpointing:
        yield [_change("--gradient-checkpointing", gradient_checkpointing=True)]
    size, loss = config.batch_size, config.loss
    contrasts = loss.target_weight != 0 or loss.input_weight != 0 or loss.text_weight
    joins = bool(contrasts and not (loss.own_weight or loss.dispersive_weight or loss.alignment_weight))
    yield [
        _change(
            f"--batch-size {size // parts} --gradient-accumulation {config.gradient_accumulation * parts}"
            + " --gradient-cache" * joins,
            batch_size=size // parts,
            gradient_accumulation=config.gradient_accumulation * parts,
            gradient_cache=joins,
        )
        for parts in range(2, size + 1)
        if size % parts == 0
    ]
    if not config.lora.rank:
        yield [_change("--lora.rank 16", lora=AdapterConfig(rank=16))]
    dtypes = ("float32", *get_args(Storage))
    yield [
        Change(f"--lora.base-dtype {dtype}", partial(_keep_base, dtype=dtype))
        for dtype in dtypes[dtypes.index(config.lora.base_dtype) + 1 :]
    ]
    if device == "cuda" and not config.offload_blocks:
        yield [_change("--offload-blocks", offload_blocks=True)]
    yield encoding


def _keep_base(config: TrainConfig, dtype: Storage) -> TrainConfig:
    return replace(config, lora=replace(config.lora, base_dtype=dtype))


def _change(options: str, **values: Any) -> Change:
    return Change(options, lambda config: replace(config, **values))


def _applied(config: TrainConfig, changes: Sequence[Change]) -> TrainConfig:
    return reduce(lambda one, change: change.apply(one), changes, config)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _layer_bytes(module: nn.Module) -> int:
    """Of its largest layer."""
    return max(sum(tensor.nbytes for tensor in layer.parameters(recurse=False)) for layer in module.modules())


def _eight_bit(numbers: int) -> int:
    """Bytes of 8-bit AdamW's two moments of a parameter."""
    return 8 * numbers if numbers < 4096 else 2 * (numbers + 4 * math.ceil(numbers / BLOCK))
