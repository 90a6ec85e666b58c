"""A step waits for the device once, whatever it is made of: figures stay there until they are logged, and what is drawn
on the CPU goes over without a wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contrastive_i2v.models import load_system
from contrastive_i2v.models.instruct_pix2pix import InstructPix2PixConfig
from contrastive_i2v.randomness import seeded
from contrastive_i2v.training.batches import build_loader
from contrastive_i2v.training.config import LossConfig, OwnSamplesConfig, TimestepsConfig, TrainConfig
from contrastive_i2v.training.inputs import make_inputs
from contrastive_i2v.training.trainer import Trainer

OPTIONS = InstructPix2PixConfig(past_frames=2, anchor=True, noise_level=True)
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__", "nonzero")
"""What makes Python wait for a GPU."""


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the reads of tensors."""
    reads: Counter[str] = Counter()

    def counting(name: str) -> Any:
        original = getattr(Tensor, name)

        def read(self: Tensor, *args: Any, **options: Any) -> Any:
            reads[name] += 1
            return original(self, *args, **options)

        return read

    with monkeypatch.context() as patch:
        for name in READS:
            patch.setattr(Tensor, name, counting(name))
        yield reads


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("log_every", [1, 100])  # the first logs every step
def test_a_step_waits_once(
    train_config: TrainConfig, micro_batches: int, log_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        train_config,
        system=OPTIONS,
        gradient_accumulation=micro_batches,
        log_every=log_every,
        condition_noise=0.3,
        loss=LossConfig(input_weight=0.1),
    )
    trainer = Trainer(config)
    loader = build_loader(trainer.dataset, config, trainer.accelerator, step=0)
    first, second = (list(islice(loader, start, start + micro_batches)) for start in (0, micro_batches))
    trainer._train_step(first)  # tables are made at the first
    with counted(monkeypatch) as reads:
        rows = trainer._train_step(second)
    assert dict(reads) == {"__bool__": 1}  # is the gradient finite?
    figures = [value for row in rows for value in row.values()]
    assert len(rows) == micro_batches + 1 and all(isinstance(value, Tensor) for value in figures)


def test_a_step_with_the_gradient_cache_and_the_average_on_the_host_waits_once(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(train_config, gradient_accumulation=2, gradient_cache=True, ema_on_cpu=True)
    trainer = Trainer(config)
    loader = iter(build_loader(trainer.dataset, config, trainer.accelerator, step=0))
    first, second = (list(islice(loader, 2)) for _ in range(2))
    trainer._train_step(first)
    with counted(monkeypatch) as reads:
        rows = trainer._train_step(second)
    assert dict(reads) == {"__bool__": 1} and len(rows) == 2


def test_a_step_with_every_term_waits_once_between_refreshes(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = LossConfig(own_weight=0.3, text_weight=0.2, flow_contrast_weight=0.05, dispersive_weight=0.5, balance=0.5)
    own = OwnSamplesConfig(condition_share=0.25, contrast_share=0.25, error_share=0.5, depth=2, clips=2, steps=1)
    frames = replace(train_config.data.frames, offset_std=0.0)
    config = replace(
        train_config, system=OPTIONS, loss=loss, own_samples=own, data=replace(train_config.data, frames=frames)
    )
    trainer = Trainer(config)
    first, second = islice(build_loader(trainer.dataset, config, trainer.accelerator, step=0), 2)
    trainer._train_step([first])
    trainer.state.step = 1
    with counted(monkeypatch) as reads:
        trainer._train_step([second])
    assert dict(reads) == {"__bool__": 2}  # and the op's reference looks at positives that are on the CPU

    bank = trainer.own_samples
    assert bank is not None and bank.records is not None
    assert len(bank.deep) == 2 and bank.deep.device.type == "cpu"
    bank.records = type(bank.records)(*(part.to("meta") for part in bank.records))
    bank.truth, bank.errors = send_to_device(bank.truth, "meta"), bank.errors.to("meta")
    with Crossings() as crossings:
        bank.draw(send_to_device(second, "meta", non_blocking=True), 2, 0)
    assert len(crossings.found) >= 8 and [name for name, waits in crossings.found if waits] == []


class Crossings(TorchDispatchMode):
    """Records what brings tensors from the CPU to another device, and whether it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        took, gave = (
            {one.device.type for one in tree_leaves(part) if isinstance(one, Tensor)} for part in ((args, kwargs), out)
        )
        if "cpu" in took and gave - {"cpu"}:
            self.found.append((str(func), not (kwargs or {}).get("non_blocking", False)))
        return out


def test_inputs_go_to_the_device_without_a_wait(train_config: TrainConfig) -> None:
    system = load_system(train_config.model, OPTIONS, device="cpu")
    trainer = Trainer(replace(train_config, system=OPTIONS), system)
    batch = next(iter(build_loader(trainer.dataset, trainer.config, trainer.accelerator, step=0)))
    vars(system)["null_embeds"] = system.encode_text([""])["prompt_embeds"].to("meta")
    options: Any = {"schedule": system.schedule, "timesteps": TimestepsConfig()}
    options |= {"conditioning_dropout": 0.1, "condition_noise": 0.3}
    make_inputs(
        send_to_device(batch, "meta"), system, **options, generator=seeded(0)
    )  # the schedule's tables go over once
    with Crossings() as crossings:
        make_inputs(send_to_device(batch, "meta", non_blocking=True), system, **options, generator=seeded(0))
    assert len(crossings.found) >= 11  # the batch, and what is drawn
    assert [name for name, waits in crossings.found if waits] == []
