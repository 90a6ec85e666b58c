"""Which rows the loss gets as candidates; several processes are in test_distributed.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contrastive_i2v.errors import InputError
from contrastive_i2v.training.candidates import CandidateBanks
from contrastive_i2v.training.config import LossConfig
from contrastive_i2v.training.inputs import LossRows

SHAPE = (4, 2, 2)


def batch(start: int) -> LossRows:
    latents = torch.arange(start, start + 3).float()[:, None, None, None].expand(3, *SHAPE)
    groups, has_condition = torch.arange(start, start + 3), torch.ones(3, dtype=torch.bool)
    banks = {"target": latents, "input": -latents}
    return LossRows(
        noisy_latents=latents,
        timesteps=groups,
        clean_latents=latents,
        noise=latents,
        has_condition=has_condition,
        banks=banks,
        groups=groups,
    )


def build(config: LossConfig, processes: int = 1) -> CandidateBanks:
    names = ["target", "input"]
    return CandidateBanks(config, names, latent_shape=SHAPE, device=torch.device("cpu"), rows=3, processes=processes)


def test_one_process_without_memory_passes_its_own_latents_on() -> None:
    inputs = batch(0)
    assert build(LossConfig())(inputs) == {"banks": inputs.banks, "groups": inputs.groups}
    assert build(LossConfig(false_negatives=False))(inputs)["groups"] is None


def test_past_latents_follow_the_batch_with_their_groups() -> None:
    banks = build(LossConfig(memory_bank=4))
    for start, past in ((0, []), (10, [0, 1, 2]), (20, [2, 10, 11, 12])):
        out = banks(batch(start))
        rows = [start, start + 1, start + 2, *past]
        assert out["banks"]["target"][:, 0, 0, 0].tolist() == rows
        assert out["banks"]["input"][:, 0, 0, 0].tolist() == [-row for row in rows]
        assert out["bank_groups"]["target"].tolist() == out["bank_groups"]["input"].tolist() == rows
        assert out["groups"].tolist() == rows[:3] and out["positives"] == {}
        assert len(banks.memory["target"]) == len(past)  # remembered when the step is over
        banks.remember()
    banks = build(LossConfig(memory_bank=4, false_negatives=False))
    assert banks(batch(0))["groups"] is None and "bank_groups" not in banks(batch(1))


def test_what_is_not_finite_is_not_remembered() -> None:
    banks = build(LossConfig(memory_bank=4))
    inputs = batch(0)
    inputs.banks["target"] = torch.full((3, *SHAPE), torch.nan)
    banks(inputs)
    banks.remember()
    assert len(banks.memory["target"]) == 0 and len(banks.memory["input"]) == 3


@pytest.mark.parametrize(
    ("config", "processes", "message"),
    [
        ({"memory_bank": 5}, 2, "memory_bank=5; expected 0, or at least the 6 rows"),
        ({"memory_bank": 9, "gather": False}, 2, "memory_bank=9 with 2 processes needs loss.gather"),
    ],
)
def test_a_memory_that_cannot_work_is_refused(config: dict[str, Any], processes: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(LossConfig(**config), processes)
    with pytest.raises(InputError, match="memory_bank: expected at least 0, got -1"):
        LossConfig(memory_bank=-1)
