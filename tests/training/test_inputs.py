"""What a batch becomes: order, posterior sample, noise, and dropped conditions."""

from __future__ import annotations

import pytest
import torch

from contrastive_i2v.data.examples import Example
from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.models.instruct_pix2pix import InstructPix2Pix
from contrastive_i2v.randomness import seeded
from contrastive_i2v.training.batches import batch_indices
from contrastive_i2v.training.config import TimestepsConfig
from contrastive_i2v.training.inputs import Inputs, loss_rows, make_inputs

SCHEDULE = NoiseSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})


@pytest.fixture
def system(model: InstructPix2Pix, monkeypatch: pytest.MonkeyPatch) -> InstructPix2Pix:
    """The random model, its latents scaled by 0.5; the embedding of "" is zero."""
    monkeypatch.setitem(vars(model), "null_embeds", torch.zeros(1, 3, 5))
    return model


def inputs(
    system: InstructPix2Pix,
    size: int,
    dropout: float,
    seed: int = 0,
    logvar: float = -30.0,
    condition_noise: float = 0.0,
) -> tuple[Example, Inputs]:
    generator = torch.Generator().manual_seed(1)
    moments = [torch.randn(size, 4, 4, 4, generator=generator) for _ in range(2)]
    moments = [torch.cat([mean, torch.full_like(mean, logvar)], dim=1) for mean in moments]
    batch = Example(
        raw=torch.stack(moments, dim=1),
        present=torch.ones(size, 2, dtype=torch.bool),
        text={"prompt_embeds": torch.randn(size, 3, 5, generator=generator)},
        fps=torch.full((size,), 5.0),
        group=torch.arange(size),
    )
    made = make_inputs(
        batch,
        system,
        schedule=SCHEDULE,
        timesteps=TimestepsConfig(),
        conditioning_dropout=dropout,
        condition_noise=condition_noise,
        generator=torch.Generator().manual_seed(seed),
    )
    return batch, made


def means(batch: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """The posterior means of the source and of the target."""
    return batch.raw[:, 0, :4], batch.raw[:, 1, :4]


def test_scales_follow_instruct_pix2pix(system: InstructPix2Pix) -> None:
    batch, made = inputs(system, 6, 0.0)
    source, target = means(batch)
    torch.testing.assert_close(made.clean_latents[:, 0], target * 0.5, atol=1e-5, rtol=0)  # a sample, scaled
    assert torch.equal(made.condition["image_latents"], source)  # the mode, unscaled
    torch.testing.assert_close(made.source_latents, source * 0.5)  # the bank is on the scale of x0
    alpha = SCHEDULE.alphas_cumprod[made.timesteps].float()[:, None, None, None, None]
    expected = alpha.sqrt() * made.clean_latents + (1 - alpha).sqrt() * made.noise
    torch.testing.assert_close(made.noisy_latents, expected)
    rows = loss_rows(made, "frame")
    assert torch.equal(rows.banks["input"], made.source_latents)
    assert rows.banks["target"] is rows.clean_latents and torch.equal(rows.clean_latents, made.clean_latents[:, 0])


def test_the_target_is_a_posterior_sample(system: InstructPix2Pix) -> None:
    batch, made = inputs(system, 4000, 0.0, logvar=0.0)
    deviation = (made.clean_latents[:, 0] / 0.5 - means(batch)[1]).std()
    assert abs(float(deviation) - 1) < 0.01


def test_condition_noise_is_uniform_in_strength_and_spares_everything_else(system: InstructPix2Pix) -> None:
    _, clean = inputs(system, 6000, 0.1)
    batch, made = inputs(system, 6000, 0.1, condition_noise=0.8)
    for name in ("noisy_latents", "timesteps", "clean_latents", "noise", "has_condition", "source_latents"):
        assert torch.equal(getattr(made, name), getattr(clean, name)), name  # so it can be compared pair by pair
    assert torch.equal(made.condition["prompt_embeds"], clean.condition["prompt_embeds"])
    kept, seen = made.has_condition, made.condition["image_latents"]
    assert torch.equal(clean.condition["image_latents"][kept], means(batch)[0][kept])
    shown = (seen - means(batch)[0])[kept] * 0.5  # on the scale of x0
    assert torch.equal(seen[~kept], torch.zeros_like(seen[~kept]))
    strength = shown.flatten(1).square().mean(1)  # mean over pairs: E[u^2] 0.8^2 = 0.64 / 3
    assert abs(float(strength.mean()) - 0.64 / 3) < 0.01
    assert abs(float(strength.sqrt().mean()) - 0.4) < 0.02 and float(strength.max()) < 0.64 * 2


def test_dropped_conditions_have_the_documented_rates_and_nulls(system: InstructPix2Pix) -> None:
    p = 0.1
    batch, made = inputs(system, 20_000, p)
    embeds = made.condition["prompt_embeds"]
    no_prompt = (embeds == 0).flatten(1).all(1)
    no_image = (made.condition["image_latents"] == 0).flatten(1).all(1)
    assert torch.equal(no_image, ~made.has_condition)
    assert abs(float(no_prompt.float().mean()) - 2 * p) < 0.01
    assert abs(float(no_image.float().mean()) - 2 * p) < 0.01
    assert abs(float((no_prompt & no_image).float().mean()) - p) < 0.01
    assert torch.equal(embeds[~no_prompt], batch.text["prompt_embeds"][~no_prompt])


def test_the_same_generator_gives_the_same_batch(system: InstructPix2Pix) -> None:
    first, second, other = (inputs(system, 3, 0.05, seed=seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first.noisy_latents, second.noisy_latents)
    assert not torch.equal(first.noise, other.noise)


def test_batches_cover_every_item_once_an_epoch_and_do_not_depend_on_the_start() -> None:
    all_batches = list(batch_indices([range(10)], [4], range(15), seed=3))
    flat = [row for batch in all_batches for row in batch]
    for epoch in range(6):
        assert sorted(flat[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert flat[10:20] == torch.randperm(10, generator=seeded(3, "epoch", 1)).tolist() != flat[:10]
    assert list(batch_indices([range(10)], [4], range(7, 15), seed=3)) == all_batches[7:]


def test_seeded_generators_are_functions_of_their_parts() -> None:
    draws = {parts: float(torch.rand((), generator=seeded(*parts))) for parts in [(0, 1), (1, 0), (0, 11), (0, 1, 1)]}
    assert len(set(draws.values())) == 4
    assert float(torch.rand((), generator=seeded(0, 1))) == draws[0, 1]
