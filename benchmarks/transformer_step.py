"""A training step of Wan beside finetrainers': `python -m benchmarks.transformer_step`.

Same random weights, latents, batch size and precision, in turns, LoRA and full fine-tuning. The step of finetrainers
0.2.0's SFT trainer is written anew here from what it does with its defaults on latents that it encoded before: one file
an item, posterior moments normalised and sampled at every step, uniform timesteps, Adam. In bf16 its weights, gradients
and moments are bfloat16, adapters float32; ours are float32 under autocast, frozen ones bfloat16. It doesn't know a
clean first latent: beside that form it trains the same transformer as text-to-video. Ours is the Trainer's own step,
loading included.

A figure is the median over the rounds; the ratio is taken round by round. Both steps are taken apart. Memory is that of
a process of its own: the tensors that stay, and how far a step raises the resident memory and that of tensors.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import cast_training_params
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from benchmarks.plan import Measured, kept_by, measured
from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.models.video_transformer import Parts
from contrastive_i2v.models.wan import ImageCondition, Wan, WanConfig
from contrastive_i2v.training.batches import build_loader
from contrastive_i2v.training.config import DataConfig, LossConfig, PreviewConfig
from contrastive_i2v.training.recipes import RECIPES
from contrastive_i2v.training.trainer import Trainer

PEER = "finetrainers"
OURS = {"ours, no contrastive term": LossConfig(target_weight=0.0), "ours, contrastive": LossConfig()}
FRAMES = {"tiny": 9, "middle": 17}
MIDDLE = {"num_attention_heads": 8, "attention_head_dim": 96, "ffn_dim": 3072, "freq_dim": 256, "num_layers": 8}
RANK = 32
CLIPS = 8


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all contenders train alike."""

    model: str = "tiny"
    image_condition: ImageCondition = "channels"
    rank: int = 0
    """Of adapters; 0 = full fine-tuning."""
    precision: Any = "no"
    gradient_checkpointing: bool = False
    resolution: int = 64
    batch_size: int = 4


def now() -> float:
    """Seconds; of processor time where torch has one thread, which other work on the machine changes least."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Clock:
    """Seconds that the parts of each step take."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        begin = now()
        yield
        self.seconds.setdefault(part, []).append(now() - begin)

    def milliseconds(self) -> dict[str, float]:
        return {part: 1000 * statistics.median(values) for part, values in self.seconds.items()}


class Finetrainers:
    """finetrainers' SFT step of Wan."""

    def __init__(self, work: Path, case: Case) -> None:
        self.dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
        self.transformer: Any = WanTransformer3DModel.from_pretrained(
            work / "model", subfolder="transformer", torch_dtype=self.dtype
        )
        self.transformer.requires_grad_(not case.rank).train()
        if case.rank:
            import peft

            targets = r"blocks.*(to_q|to_k|to_v|to_out.0)"  # of its examples for Wan
            config = peft.LoraConfig(r=case.rank, lora_alpha=case.rank, target_modules=targets)
            self.transformer.add_adapter(config)
            cast_training_params([self.transformer], dtype=torch.float32)
        if case.gradient_checkpointing:
            for name, block in self.transformer.blocks.named_children():
                self.transformer.blocks.register_module(name, checkpoint_wrapper(block, preserve_rng_state=False))
        parameters = self.transformer.parameters()
        self.optimizer = torch.optim.Adam(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-4)
        self.learning_rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.sigmas = FlowMatchEulerDiscreteScheduler().sigmas
        self.files = itertools.cycle(sorted((work / "items").iterdir()))
        self.batch_size, self.clock = case.batch_size, Clock()

    def step(self) -> None:
        of = self.clock.of
        with of("loading"):
            batch = self.load()
        with of("inputs"):
            told, target = self.inputs(batch)
        with of("forward"):
            prediction = self.transformer(**told, return_dict=False)[0]
        with of("loss"):
            loss = (prediction.float() - target.float()).pow(2).mean([1, 2, 3, 4]).mean()
        with of("backward"):
            loss.backward()
        loss.item()
        with of("clipping"):
            norm = torch.nn.utils.clip_grad_norm_(self.transformer.parameters(), 1.0, foreach=True)
        with of("optimizer"):
            self.optimizer.step()
            self.learning_rate.step()
            self.optimizer.zero_grad()
        norm.item()

    def load(self) -> dict[str, Tensor]:
        """A batch as it was encoded, in the precision of training."""
        items = [load_file(next(self.files)) for _ in range(self.batch_size)]
        same = {name: items[0].pop(name) for name in ("latents_mean", "latents_std")}
        batch = same | {name: torch.cat([item[name] for item in items]) for name in items[0]}
        return {name: value.to(self.dtype).contiguous() for name, value in batch.items()}

    def inputs(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """What the transformer takes, and the target."""
        mean, scale = (batch.pop(name).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))

        def posterior(name: str) -> DiagonalGaussianDistribution:
            moments = [((half.float() - mean) * scale).to(half) for half in batch.pop(name).chunk(2, dim=1)]
            return DiagonalGaussianDistribution(torch.cat(moments, dim=1))

        sigmas = self.sigmas[(torch.rand(self.batch_size) * 1000).long()].view(-1, 1, 1, 1, 1)
        clean = posterior("latents").sample()
        noise = torch.randn_like(clean)
        noisy = (1 - sigmas) * clean + sigmas * noise
        if "latent_condition" in batch:
            noisy = torch.cat([noisy, batch.pop("latent_condition_mask"), posterior("latent_condition").mode()], dim=1)
        told = {**batch, "hidden_states": noisy.to(clean), "timestep": (sigmas.flatten() * 1000).long()}
        return told, noise - clean

    def kept(self) -> list[Tensor]:
        """The tensors that stay from step to step."""
        moments = (value for values in self.optimizer.state.values() for value in values.values())
        return [*self.transformer.parameters(), *self.transformer.buffers(), *moments]


class Ours:
    """The Trainer's step."""

    def __init__(self, work: Path, case: Case, loss: LossConfig) -> None:
        config = replace(
            RECIPES["wan"],
            output=Path(tempfile.mkdtemp(dir=work)) / "run",
            model=str(work / "model"),
            lora=AdapterConfig(
                rank=case.rank, base_dtype="bfloat16" if case.rank and case.precision == "bf16" else "float32"
            ),
            steps=100_000,
            batch_size=case.batch_size,
            mixed_precision=case.precision,
            gradient_checkpointing=case.gradient_checkpointing,
            log_every=100_000,
            trackers=(),
            data=DataConfig(
                path=work / "clips" / "train",
                cache_dir=work / "latents",
                resolution=case.resolution,
                frames=FramesConfig(frame_rate=16.0, offset_std=0.0),
            ),
            loss=loss,
            preview=PreviewConfig(every=0),
        )
        self.trainer = trainer = Trainer(config)
        self.clock = clock = Clock()
        self.batches = iter(build_loader(trainer.dataset, config, trainer.accelerator, step=0))
        parts: list[tuple[str, Any, str]] = [
            ("inputs", trainer, "_inputs"),
            ("forward", trainer, "_predict"),
            ("loss", trainer, "_loss"),
            ("backward", trainer.accelerator, "backward"),
            ("clipping", trainer.accelerator, "clip_grad_norm_"),
            ("optimizer", trainer.state.optimizer, "step"),
        ]
        for part, owner, name in parts:
            setattr(owner, name, clock.of(part)(getattr(owner, name)))

    def step(self) -> None:
        with self.clock.of("loading"):
            batch = next(self.batches)
        self.trainer._train_step([batch])
        self.trainer.state.step += 1

    def kept(self) -> list[Tensor]:
        """The tensors that stay from step to step."""
        return kept_by(self.trainer)


def contender(work: Path, case: Case, name: str) -> Finetrainers | Ours:
    return Finetrainers(work, case) if name == PEER else Ours(work, case, OURS[name])


def random_model(model: str, image_condition: ImageCondition) -> Wan:
    """The tiny random model, or one around a transformer of the middle size."""
    torch.manual_seed(0)
    system = Wan.random(WanConfig(image_condition=image_condition, frames=FRAMES[model]))
    if model == "tiny":
        return system
    settings = {**system.transformer.config, **MIDDLE}
    if system.image_encoder is not None:
        settings["added_kv_proj_dim"] = MIDDLE["num_attention_heads"] * MIDDLE["attention_head_dim"]
    transformer = WanTransformer3DModel.from_config(settings)
    parts = Parts(system.vae, system.text_encoder, system.tokenizer, transformer)
    image = {"image_encoder": system.image_encoder, "image_processor": system.image_processor}
    return Wan(parts, system.scheduler, system.config, **image)


def prepare(work: Path, case: Case) -> None:
    """Clips, the model, and the same latents and texts as finetrainers keeps them."""
    make_shapes(work / "clips", ShapesConfig(train_clips=CLIPS, test_clips=0, size=case.resolution))
    random_model(case.model, case.image_condition).save(work / "model")
    trainer = Ours(work, case, LossConfig()).trainer
    codec: Any = trainer.system.codec
    dataset: Any = trainer.dataset
    (work / "items").mkdir()
    same = {"latents_mean": codec.mean.flatten(), "latents_std": 1 / codec.std.flatten()}
    for number in range(len(dataset)):
        example = dataset[number]
        item = {**same, "latents": example.raw, "encoder_hidden_states": example.text["prompt_embeds"]}
        if example.image:
            known = codec.denormalize(example.image["image_latents"])
            mask = known.new_zeros(len(known), codec.temporal_downscale, *known.shape[2:])
            mask[0] = 1
            moments = torch.cat([known, torch.zeros_like(known)], dim=1)  # the mode alone is used
            item |= {"latent_condition": moments, "latent_condition_mask": mask}
            item["encoder_hidden_states_image"] = example.image["image_embeds"]
        frames = ("latents", "latent_condition", "latent_condition_mask")
        item |= {name: item[name].transpose(0, 1) for name in frames if name in item}
        whole = {name: (value if name in same else value[None]).contiguous() for name, value in item.items()}
        save_file(whole, work / "items" / f"{number:03}.safetensors")


def times(work: Path, case: Case, rounds: int) -> dict[str, Any]:
    """Medians of the steps and their parts, in milliseconds."""
    theirs = Finetrainers(work, case)
    contenders: dict[str, Finetrainers | Ours] = {PEER: theirs}
    contenders |= {name: Ours(work, case, loss) for name, loss in OURS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for one in contenders.values():
        one.step()
        one.clock.seconds.clear()
    for _ in range(rounds):
        for name, one in contenders.items():
            begin = now()
            one.step()
            seconds[name].append(now() - begin)
    return {
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
        "speed_up": {
            name: statistics.median(peer / mine for peer, mine in zip(seconds[PEER], values, strict=True))
            for name, values in seconds.items()
        },
        "parts": {name: one.clock.milliseconds() for name, one in contenders.items()},
        "parameters": sum(parameter.numel() for parameter in theirs.transformer.parameters()),
    }


def memory(work: Path, case: Case, name: str) -> Measured:
    """Of a contender, in a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", __spec__.name, "--memory-of", json.dumps([str(work), asdict(case), name])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(FRAMES), default="tiny")
    parser.add_argument("--image-condition", choices=get_args(ImageCondition), default="channels")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, help="a JSON file of the figures")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_of:
        folder, values, name = json.loads(options.memory_of)
        one = contender(Path(folder), Case(**values), name)
        print(json.dumps(asdict(measured(one.step, one.kept))))
        return
    case = Case(**{item.name: getattr(options, item.name) for item in fields(Case) if item.name != "rank"})
    found: dict[str, Any] = {**asdict(case), "frames": FRAMES[case.model]}
    found |= {"rounds": options.rounds, "threads": torch.get_num_threads(), "rows": []}
    del found["rank"]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        prepare(work, case)
        for rank in (RANK, 0):
            case = replace(case, rank=rank)
            row = {"rank": rank, **times(work, case, options.rounds)}
            row["memory"] = {name: asdict(memory(work, case, name)) for name in (PEER, *OURS)}
            found["rows"].append(row)
    text = json.dumps(found, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
