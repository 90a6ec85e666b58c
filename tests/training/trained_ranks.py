"""What trainings in several processes must agree on; `test_distributed.py` runs this file, or starts ranks with it.

`python trained_ranks.py CONFIG FOLDER` forks ranks after everything is imported, so the imports are paid for once, and
saves what each rank ends with as `FOLDER/CASE-RANK.pt`. `python trained_ranks.py CONFIG` is one rank that a launcher
started: it trains, and where CI2V_DIE says `RANK STEP`, that rank kills itself there, unless it was started anew.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from contrastive_i2v.cli.main import main
from contrastive_i2v.processes import restarted
from contrastive_i2v.randomness import seeded
from contrastive_i2v.training.config import TrainConfig, load_config
from contrastive_i2v.training.inputs import Inputs, make_inputs
from contrastive_i2v.training.trainer import Trainer

RANKS, ROWS = 4, 2


def whole(value: Any) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


@contextmanager
def gradients(trainer: Trainer) -> Iterator[list[Tensor]]:
    """The gradient of each step, before it is clipped."""
    found: list[Tensor] = []
    clip = trainer.accelerator.clip_grad_norm_

    def clip_grad_norm(parameters: list[Any], limit: float) -> Tensor:
        found.append(torch.cat([whole(parameter.grad).flatten() for parameter in parameters]))
        return clip(parameters, limit)

    trainer.accelerator.clip_grad_norm_ = clip_grad_norm
    yield found


def train(trainer: Trainer) -> dict[str, Any]:
    """Train, and say what came of it."""
    with gradients(trainer) as found:
        trainer.run()
    weights = torch.cat([whole(parameter.detach()).flatten() for parameter in trainer.state.trainable])
    return {"gradients": found, "weights": weights, "skipped": trainer.state.nonfinite_steps}


def case_apart(config: TrainConfig) -> dict[str, Any]:
    """Ranks of ROWS rows each; the noise that each draws is noted, and its losses."""
    trainer, noise, rows = Trainer(config), [], []
    make, step = trainer._inputs, trainer._train_step

    def inputs(*arguments: Any) -> Inputs:
        out = make(*arguments)
        noise.append(out.noise)
        return out

    def train_step(batches: Any) -> Any:
        rows.append(step(batches))
        return rows[-1]

    trainer._inputs, trainer._train_step = inputs, train_step  # type: ignore[method-assign]
    return {**train(trainer), "noise": noise, "losses": torch.stack([row[0]["loss"] for row in rows])}


def case_together(config: TrainConfig) -> dict[str, Any]:
    """One process with everyone's rows, noise and rounded banks."""
    trainer, losses = Trainer(replace(config, batch_size=RANKS * ROWS)), []
    candidates, step = trainer.candidates.forward, trainer._train_step

    def inputs(batch: Any, micro_batch: int) -> Inputs:
        parts = []
        for rank in range(RANKS):
            mine = slice(rank * ROWS, (rank + 1) * ROWS)
            generator = seeded(config.seed, "step", trainer.state.step, micro_batch, rank)
            part = tree_map(lambda value, mine=mine: value[mine], batch)
            parts.append(
                make_inputs(
                    part,
                    trainer.system,
                    schedule=trainer.loss.schedule,
                    timesteps=config.timesteps,
                    conditioning_dropout=config.conditioning_dropout,
                    generator=generator,
                )
            )
        values = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Inputs)}
        condition = {name: torch.cat([each[name] for each in values["condition"]]) for name in parts[0].condition}
        tensors = {name: torch.cat(each) for name, each in values.items() if isinstance(each[0], Tensor)}
        return replace(parts[0], **tensors, condition=condition)

    def train_step(batches: Any) -> Any:
        rows = step(batches)
        losses.append(rows[0]["loss"])
        return rows

    def rounded(rows: Any) -> dict[str, Any]:
        return candidates(replace(rows, banks={name: bank.bfloat16() for name, bank in rows.banks.items()}))

    trainer._inputs, trainer._train_step = inputs, train_step  # type: ignore[method-assign]
    trainer.candidates.forward = rounded  # type: ignore[method-assign]
    return {**train(trainer), "losses": torch.stack(losses)}


def case_nan(config: TrainConfig) -> dict[str, Any]:
    """The last rank's second batch is NaN."""
    trainer = Trainer(config)
    make = trainer._inputs

    def inputs(*arguments: Any) -> Inputs:
        out = make(*arguments)
        if trainer.state.step == 1 and trainer.accelerator.process_index == RANKS - 1:
            out = replace(out, noisy_latents=out.noisy_latents * torch.nan)
        return out

    trainer._inputs = inputs  # type: ignore[method-assign]
    return train(trainer)


BALANCED = "balanced "
CASES: dict[str, tuple[Callable[[TrainConfig], dict[str, Any]], int]] = {
    "together": (case_together, 1),
    "apart": (case_apart, RANKS),
    BALANCED + "together": (case_together, 1),
    BALANCED + "apart": (case_apart, RANKS),
    "nan": (case_nan, RANKS),
    "sharded": (lambda config: case_apart(replace(config, shard=True)), RANKS),
    "sharded nan": (lambda config: case_nan(replace(config, shard=True)), RANKS),
}


def start(rank: int, ranks: int, case: str, config: TrainConfig, folder: Path) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(ranks)}
    loss = replace(config.loss, balance=0.5 if case.startswith(BALANCED) else None)
    made = CASES[case][0](replace(config, output=folder / case, loss=loss))
    torch.save(made, folder / f"{case}-{rank}.pt")
    if ranks > 1:
        torch.distributed.destroy_process_group()


def die_at(rank: str, step: int) -> None:
    original = Trainer._train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.state.step == step and os.environ["RANK"] == rank and not restarted():
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batches)

    Trainer._train_step = train_step  # type: ignore[method-assign]


if __name__ == "__main__":
    if len(sys.argv) == 2:
        if death := os.environ.get("CI2V_DIE"):
            die_at(death.split()[0], int(death.split()[1]))
        sys.exit(main(["train", "--config", sys.argv[1]]))
    run = load_config(TrainConfig, Path(sys.argv[1]))
    for name, (_, count) in CASES.items():
        arguments = (count, name, run, Path(sys.argv[2]))
        mp.start_processes(start, arguments, nprocs=count, start_method="fork")
