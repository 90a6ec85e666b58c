"""Processes that read batches ahead: one that dies or finds damage ends the run in one line, and nothing is lost."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import pytest
from runs import assert_same_run, beside, last_step

from contrastive_i2v.data.examples import ExampleDataset
from contrastive_i2v.errors import InputError
from contrastive_i2v.training.config import TrainConfig
from contrastive_i2v.training.trainer import Trainer


@pytest.mark.processes
@pytest.mark.fault(
    "kill -9 of a process that reads batches ahead",
    "one line, what is trained is saved, and a resumed run ends with the bits of an undisturbed one",
)
def test_a_worker_that_dies_ends_the_run_with_a_checkpoint(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(train_config).run()
    killed, main, read = beside(train_config, "killed", workers=1, checkpoint_every=100), os.getpid(), []
    getitem = ExampleDataset.__getitem__

    def dies(self: ExampleDataset, index: int) -> Any:
        read.append(index)
        if os.getpid() != main and len(read) > 5 * killed.batch_size:
            os.kill(os.getpid(), signal.SIGKILL)
        return getitem(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(ExampleDataset, "__getitem__", dies)
        with pytest.raises(InputError, match="workers: a process that reads batches ahead died .*--resume") as raised:
            Trainer(killed).run()
    assert "\n" not in str(raised.value) and 0 < last_step(killed) <= 5
    Trainer(replace(killed, resume=True)).run()
    assert_same_run(train_config.output, killed.output)


@pytest.mark.processes
@pytest.mark.fault("cached clips are damaged while a training reads them ahead", "one line, and no traceback")
def test_damage_that_a_worker_finds_is_one_line(train_config: TrainConfig) -> None:
    trainer = Trainer(replace(train_config, workers=1))
    for file in trainer.dataset.files:
        file.write_bytes(b"damaged")
    with pytest.raises(InputError, match="gone or damaged since the run began") as raised:
        trainer.run()
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)
