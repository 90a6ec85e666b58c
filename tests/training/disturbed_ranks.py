"""Four ranks that are killed or stopped in their sixth step and started again; `test_distributed.py` runs this file.

`python disturbed_ranks.py CONFIG FOLDER` trains into `FOLDER/CASE` and writes how the ranks ended as
`FOLDER/ended.json`. Ranks are forked after everything is imported, so the imports are paid for once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from contrastive_i2v.cli.main import main
from contrastive_i2v.training.config import TrainConfig, load_config, save_config
from contrastive_i2v.training.trainer import Trainer

RANKS, STEP, POISONED = 4, 5, 2


def harm(case: str, rank: int, step: int, batches: list[Any]) -> list[Any]:
    """What is done to a rank before a step. In every case one rank's third batch is NaN."""
    if step == STEP and (case == "stopped" or (case == "killed" and rank == 2)):
        os.kill(os.getpid(), signal.SIGTERM if case == "stopped" else signal.SIGKILL)
    if (rank, step) == (3, POISONED):
        return [batch._replace(raw=batch.raw * torch.nan) for batch in batches]
    return batches


def start(rank: int, config: Path, case: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(RANKS)}
    original = Trainer._train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        return original(self, harm(case, rank, self.state.step, list(batches)))

    Trainer._train_step = train_step  # type: ignore[method-assign]
    code = main(["train", "--config", str(config)])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(code)


def run(config: TrainConfig, case: str) -> list[int | None]:
    """The exit codes of the ranks."""
    path = config.output.with_suffix(".yaml")
    save_config(config, path)
    ranks = mp.start_processes(start, (path, case), nprocs=RANKS, join=False, start_method="fork").processes
    for rank in ranks:
        rank.join(60)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return codes


if __name__ == "__main__":
    given, folder = load_config(TrainConfig, Path(sys.argv[1])), Path(sys.argv[2])
    ended = {"undisturbed": [run(replace(given, output=folder / "undisturbed"), "undisturbed")]}
    for name in ("killed", "stopped"):
        once = replace(given, output=folder / name)
        ended[name] = [run(once, name), run(replace(once, resume=True), "resumed")]
    (folder / "ended.json").write_text(json.dumps(ended))
