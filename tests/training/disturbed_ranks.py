"""Four ranks that are harmed in their sixth step and started again; `test_distributed.py` runs this file.

`python disturbed_ranks.py CONFIG FOLDER` trains into `FOLDER/CASE` and writes how the ranks ended as
`FOLDER/ended.json`. Ranks are forked after everything is imported, so the imports are paid for once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from contrastive_i2v.cli.main import main
from contrastive_i2v.training.config import TrainConfig, load_config, save_config
from contrastive_i2v.training.trainer import Trainer

RANKS, STEP, POISONED = 4, 5, 2


def kill_one(rank: int, step: int, batches: list[Any]) -> list[Any]:
    if (rank, step) == (2, STEP):
        os.kill(os.getpid(), signal.SIGKILL)
    return batches


def stop_all(rank: int, step: int, batches: list[Any]) -> list[Any]:
    if step == STEP:
        os.kill(os.getpid(), signal.SIGTERM)
    return batches


def poison_one(rank: int, step: int, batches: list[Any]) -> list[Any]:
    if (rank, step) == (3, POISONED):
        return [batch._replace(raw=batch.raw * torch.nan) for batch in batches]
    return batches


def poison_one_and_stop_all(rank: int, step: int, batches: list[Any]) -> list[Any]:
    return stop_all(rank, step, poison_one(rank, step, batches))


Harm = Callable[[int, int, list[Any]], list[Any]]
CASES: dict[str, tuple[Harm | None, bool]] = {
    "undisturbed": (None, False),
    "killed": (kill_one, True),
    "stopped": (stop_all, True),
    "poisoned": (poison_one, False),
    "poisoned and stopped": (poison_one_and_stop_all, True),
}
"""What is done to the ranks, and whether the run is resumed."""


def start(rank: int, config: Path, harm: Harm | None) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(RANKS)}
    original = Trainer._train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        return original(self, harm(rank, self.state.step, list(batches)) if harm else batches)

    Trainer._train_step = train_step  # type: ignore[method-assign]
    code = main(["train", "--config", str(config)])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(code)


def run(config: TrainConfig, harm: Harm | None) -> dict[str, Any]:
    path = config.output.with_suffix(".yaml")
    save_config(config, path)
    began = time.monotonic()
    ranks = mp.start_processes(start, (path, harm), nprocs=RANKS, join=False, start_method="fork").processes
    for rank in ranks:
        rank.join(60)
    ended = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return {"codes": ended, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    given, folder = load_config(TrainConfig, Path(sys.argv[1])), Path(sys.argv[2])
    ended = {}
    for name, (what, resumed) in CASES.items():
        config = replace(given, output=folder / name)
        ended[name] = [run(config, what), *([run(replace(config, resume=True), None)] if resumed else [])]
    (folder / "ended.json").write_text(json.dumps(ended))
