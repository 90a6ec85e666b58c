"""What `contrastive-i2v plan` says a step needs, against the peak that a trainer's step reaches on this CPU.

    python -m benchmarks.plan WORK

Each case is a process of its own: a trainer on generated clips makes one step, so that moments and whatever libraries
keep are there, and the next one is measured, its resident memory (as in memory.py) and the tensors that are alive. What
stays is counted from the tensors themselves. Clips, models and runs go to the folder WORK.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.memory import peak_of
from contrastive_i2v.training.config import DataConfig, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from contrastive_i2v.training.trainer import Trainer

WIDTHS = {"tiny": None, "middle": (128, 256, 384)}
CASES: list[dict[str, Any]] = [
    {},
    {"gradient_checkpointing": True},
    {"mixed_precision": "bf16"},
    {"gradient_accumulation": 2, "gradient_cache": True, "batch_size": 8},
    {"lora": {"rank": 16}},
]


@dataclass(frozen=True)
class Measured:
    """Bytes."""

    stays: int
    """Weights of every part, moments and the moving average."""
    resident: int
    """How far a step raises the process's memory."""
    tensors: int
    """How far it raises that of tensors."""


def config_of(work: Path, model: str, changes: dict[str, Any]) -> TrainConfig:
    from contrastive_i2v.models.lora import AdapterConfig
    from contrastive_i2v.training.recipes import RECIPES

    more = {**changes, "lora": AdapterConfig(**changes["lora"])} if "lora" in changes else changes
    recipe = RECIPES["tiny-contrastive"]
    data: DataConfig = replace(recipe.data, path=work / "clips" / "train", cache_dir=work / "latents")
    name = model if model == "tiny" else str(work / model)
    output = work / f"run-{os.getpid()}"
    return replace(recipe, **{"mixed_precision": "no", "output": output, "model": name, "data": data, **more})


def kept_by(trainer: Trainer) -> list[Tensor]:
    """The tensors that stay from step to step."""
    optimizer = trainer.state.optimizer.optimizer
    return [
        *(tensor for part in trainer.system.parts().values() for tensor in (*part.parameters(), *part.buffers())),
        *(value for values in optimizer.state.values() for value in values.values()),
        *(trainer.state.ema.shadow_params if trainer.state.ema else []),
    ]


def measured(step: Callable[[], object], kept: Callable[[], Iterable[Tensor]]) -> Measured:
    """Of three steps in this process, which should be fresh; `kept` says which tensors stay between them."""
    from contrastive_i2v.training.live_bytes import LiveBytes

    step()
    resident = peak_of(step)
    with LiveBytes() as memory:
        for tensor in kept():
            memory.add(tensor)
        stays = memory.peak = memory.live
        step()
    return Measured(stays, resident, memory.peak - stays)


def measure(config: TrainConfig) -> Measured:
    """Of a trainer's step."""
    from contrastive_i2v.training.batches import build_loader
    from contrastive_i2v.training.trainer import Trainer

    trainer = Trainer(config)
    loader = iter(build_loader(trainer.dataset, config, trainer.accelerator, step=0))
    batches = iter([list(islice(loader, config.gradient_accumulation)) for _ in range(3)])
    return measured(lambda: trainer._train_step(next(batches)), lambda: kept_by(trainer))


def prepare(work: Path) -> None:
    """Clips and models."""
    import torch

    from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
    from contrastive_i2v.models.tiny import untrained_system

    make_shapes(work / "clips", ShapesConfig(train_clips=8, test_clips=1))
    for name, widths in WIDTHS.items():
        if widths and not (work / name / "system.json").exists():
            torch.manual_seed(0)
            untrained_system(widths, (False, True, True)).save(work / name)


def main() -> None:
    work = Path(sys.argv[1]).absolute()
    if len(sys.argv) > 2:
        print(json.dumps(asdict(measure(config_of(work, sys.argv[2], json.loads(sys.argv[3]))))))
        return
    from contrastive_i2v.training.plan import Planner

    prepare(work)
    planner = Planner("cpu")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    print("| model | options | planned: stays + step | tensors of the step | resident | peak, planned to measured |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in WIDTHS:
        for changes in CASES:
            command = [sys.executable, "-m", "benchmarks.plan", str(work), model, json.dumps(changes)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            found = Measured(**json.loads(done.stdout.splitlines()[-1]))
            needs = planner.needs(config_of(work, model, changes))
            error = needs.total / (found.stays + found.resident) - 1
            cells = [
                f"{model}, {needs.parameters / 1e6:.1f} M",
                ", ".join(f"{key} {value}" for key, value in changes.items()) or "float32",
                f"{(needs.total - needs.step) / 1e6:.1f} + {needs.step / 1e6:.1f} MB",
                f"{found.tensors / 1e6:.1f} MB ({needs.step / found.tensors - 1:+.1%})",
                f"{found.stays / 1e6:.1f} + {found.resident / 1e6:.1f} MB",
                f"{error:+.1%}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
