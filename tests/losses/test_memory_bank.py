"""The queue against a plain list that does the same."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.losses import ContrastiveDiffusionLoss, MemoryBank
from contrastive_i2v.losses.memory_bank import NO_GROUP

SHAPE = (2, 3)


def rows(count: int, start: int) -> torch.Tensor:
    """Latents that say which they are, exactly in bfloat16."""
    return torch.arange(start, start + count).float()[:, None, None].expand(count, *SHAPE) % 256


@pytest.mark.parametrize("max_age", [None, 0, 2])
def test_it_is_first_in_first_out(max_age: int | None) -> None:
    rng = random.Random(0)
    bank = MemoryBank(7, SHAPE, max_age=max_age)
    kept: list[tuple[int, int, int]] = []  # (latent, group, call)
    seen = 0
    for call in range(30):
        count = rng.randint(1, 7)
        groups = torch.arange(count) if rng.random() < 0.7 else None
        bank.enqueue(rows(count, seen), groups)
        kept += [(seen + i, i if groups is not None else NO_GROUP, call) for i in range(count)]
        seen += count
        kept = [one for one in kept[-7:] if max_age is None or call - one[2] <= max_age]
        assert len(bank) == len(kept)
        assert bank.latents.dtype == torch.bfloat16 and bank.latents.shape[1:] == SHAPE
        assert bank.latents[:, 0, 0].tolist() == [one[0] % 256 for one in kept]
        assert bank.groups.tolist() == [one[1] for one in kept]
        assert bank.ages.tolist() == [call - one[2] for one in kept]


def test_candidates_have_the_batch_first_and_rounded_alike() -> None:
    bank = MemoryBank(4, SHAPE)
    batch, groups = torch.randn(2, *SHAPE), torch.tensor([5, 6])
    first = bank.candidates(batch, groups)
    assert torch.equal(first.latents, batch.bfloat16()) and torch.equal(first.groups, groups)
    bank.enqueue(batch, groups)
    bank.enqueue(rows(1, 3))
    latents, marks = bank.candidates(rows(2, 8), torch.tensor([6, 7]))
    assert torch.equal(latents, torch.cat([rows(2, 8), batch, rows(1, 3)]).bfloat16())
    assert marks.tolist() == [6, 7, 5, 6, NO_GROUP]
    assert bank.candidates(batch).groups is None
    bank.enqueue(rows(4, 0))
    assert torch.equal(latents[2:4], batch.bfloat16())  # a copy: what a loss holds doesn't change under it


def test_in_the_loss_past_rows_are_negatives_but_for_the_own_groups() -> None:
    schedule = NoiseSchedule.from_config({"beta_schedule": "linear", "prediction_type": "sample"})
    loss = ContrastiveDiffusionLoss(schedule, banks={"target": 1.0}, gate="none", temperature=0.5)
    generator = torch.Generator().manual_seed(0)
    clean, noise, prediction, past = torch.randn(4, 3, *SHAPE, generator=generator).bfloat16().float()
    groups, past_groups = torch.tensor([0, 1, 2]), torch.tensor([1, 8, 9])
    bank = MemoryBank(6, SHAPE)
    bank.enqueue(past, past_groups)
    latents, marks = bank.candidates(clean, groups)
    args = (prediction, noise, torch.tensor([1, 2, 3]), clean, noise)
    out = loss(*args, {"target": latents}, groups=groups, bank_groups={"target": marks})
    logits = torch.nn.functional.cosine_similarity(
        prediction.flatten(1)[:, None], torch.cat([clean, past]).flatten(1), dim=2
    )
    logits[1, 3] = -torch.inf
    expected = torch.nn.functional.cross_entropy(logits / 0.5, torch.arange(3))
    torch.testing.assert_close(out.contrastive["target"], expected, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_goes_on_exactly(tmp_path: Any) -> None:
    bank, other = MemoryBank(5, SHAPE, max_age=3), MemoryBank(5, SHAPE, max_age=3)
    for start in range(4):
        bank.enqueue(rows(2, start), torch.tensor([start, 9]))
    save_file(bank.state_dict(), tmp_path / "bank.safetensors")
    other.load_state_dict(load_file(tmp_path / "bank.safetensors"))
    for start in range(3):
        for name in ("latents", "groups", "ages"):
            assert torch.equal(getattr(bank, name), getattr(other, name))
        for one in (bank, other):
            one.enqueue(rows(2, 50 + start))
    assert not list(bank.parameters())


@pytest.mark.parametrize(
    ("latents", "groups", "message"),
    [
        (torch.ones(5, *SHAPE), None, "latents has 5 rows: expected at most 4"),
        (torch.ones(2, 3), None, r"latents is torch.float32 \[2, 3\]: expected floating \[B, \*\[2, 3\]\]"),
        (torch.ones(0, *SHAPE), None, r"latents is torch.float32 \[0, 2, 3\]"),
        (torch.ones(2, *SHAPE, dtype=torch.int64), None, "latents is torch.int64"),
        (torch.ones(2, *SHAPE, requires_grad=True), None, "latents requires a gradient"),
        (torch.ones(2, *SHAPE), torch.ones(2), "groups is torch.float32"),
        (torch.ones(2, *SHAPE), torch.arange(3), r"groups is torch.int64 \[3\]: expected torch.int64 \[2\]"),
        (torch.tensor([0.0, torch.nan])[:, None, None].expand(2, *SHAPE), None, "NaN or infinity in row 1"),
        (torch.full((1, *SHAPE), 3.4e38), None, "NaN or infinity in row 0 as torch.bfloat16"),
    ],
)
def test_bad_input_is_refused_and_leaves_the_queue_alone(
    latents: torch.Tensor, groups: torch.Tensor | None, message: str
) -> None:
    bank = MemoryBank(4, SHAPE)
    bank.enqueue(rows(3, 1))
    before = bank.latents
    with pytest.raises(ValueError, match=message):
        bank.enqueue(latents, groups)
    assert torch.equal(bank.latents, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"latent_shape": ()}, r"latent_shape is \(\)"),
        ({"dtype": torch.int8}, "dtype is torch.int8"),
        ({"max_age": -1}, "max_age is -1"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryBank(**{"size": 4, "latent_shape": SHAPE, **arguments})
