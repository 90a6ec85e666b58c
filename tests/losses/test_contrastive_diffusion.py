"""The loss module against its definition, written out in float64, and the behaviour its arguments promise."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError
from contrastive_i2v.losses import ContrastiveDiffusionLoss, min_snr_weights

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TYPES = ["epsilon", "v_prediction", "sample", "flow"]
SHAPE = (6, 4, 3, 5)


def _config(prediction_type: str) -> dict[str, Any]:
    return {**SD, "prediction_type": prediction_type}


def _batch(schedule: NoiseSchedule, seed: int = 0) -> dict[str, Any]:
    """The positional arguments of `forward`, with the prediction some way off the target."""
    generator = torch.Generator().manual_seed(seed)
    clean, noise, source, error = torch.randn(4, *SHAPE, generator=generator)
    timesteps = schedule.sample_timesteps(SHAPE[0], generator)
    target = schedule.target(clean, noise, timesteps)
    return {
        "prediction": (target + 0.3 * error).requires_grad_(),
        "noisy_latents": schedule.add_noise(clean, noise, timesteps),
        "timesteps": timesteps,
        "clean_latents": clean,
        "noise": noise,
        "banks": {"input": source, "target": clean},
    }


def _query(batch: dict[str, Any]) -> dict[str, Any]:
    """The same without what `retrieval_accuracy` doesn't take."""
    return {key: value for key, value in batch.items() if key not in ("clean_latents", "noise")}


def _definition(
    loss: ContrastiveDiffusionLoss,
    batch: dict[str, Any],
    weights: dict[str, float],
    gate: Tensor,
    mse_weights: Tensor,
    positives: dict[str, list[int]],
    excluded: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """loss and cross entropies by the equations, query by query, with autograd; x0 by solving for it."""
    schedule, prediction = loss.schedule, batch["prediction"].double()
    noisy, t = batch["noisy_latents"].double(), batch["timesteps"]
    if schedule.prediction_type == "flow":
        sigma = (t.double() / 1000)[:, None, None, None]
        x0 = noisy - sigma * prediction
        target = batch["noise"].double() - batch["clean_latents"].double()
    else:
        assert schedule.alphas_cumprod is not None
        abar = schedule.alphas_cumprod[t][:, None, None, None]
        keep, mix = abar.sqrt(), (1 - abar).sqrt()
        clean, noise = batch["clean_latents"].double(), batch["noise"].double()
        if schedule.prediction_type == "epsilon":
            x0, target = (noisy - mix * prediction) / keep, noise
        elif schedule.prediction_type == "v_prediction":
            x0, target = keep * noisy - mix * prediction, keep * noise - mix * clean
        else:
            x0, target = prediction, clean
    total = (mse_weights * (prediction - target).square().mean((1, 2, 3))).mean()
    entropies = {}
    for name, weight in weights.items():
        bank = batch["banks"][name].double().flatten(1)
        terms = []
        for i, positive in enumerate(positives[name]):
            query = x0[i].flatten()
            logits = bank @ query
            if loss.normalize:
                logits = logits / (query.norm() * bank.norm(dim=1))
            logits = logits / loss.temperature
            keep_rows = ~excluded[name][i]
            term = logits[keep_rows].logsumexp(0) - logits[positive] if positive >= 0 else 0 * logits.sum()
            terms.append(gate[i] * term)
        entropies[name] = torch.stack(terms).mean()
        total = total + weight * entropies[name]
    return total, entropies


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("recipe", ["default", "literal"])
def test_definition(prediction_type: str, recipe: str) -> None:
    schedule = NoiseSchedule.from_config(_config(prediction_type))
    batch = _batch(schedule)
    size, elements = SHAPE[0], 4 * 3 * 5
    groups = torch.tensor([0, 1, 0, 2, 2, 3])
    has_condition = torch.tensor([True, True, False, True, True, False])
    if recipe == "default":
        loss = ContrastiveDiffusionLoss(schedule, banks={"target": 0.7}, min_snr_gamma=5.0)
        weights, gate = {"target": 0.7}, schedule.signal(batch["timesteps"]).double()
        mse_weights = min_snr_weights(schedule, batch["timesteps"], 5.0).double()
    else:
        loss = ContrastiveDiffusionLoss(
            schedule, banks={"input": None, "target": None}, temperature=1.0, normalize=False, gate="none"
        )
        weights = {"input": 1 / elements, "target": 1 / elements}
        gate = mse_weights = torch.ones(size, dtype=torch.float64)

    same_video = (groups[:, None] == groups) & ~torch.eye(size, dtype=torch.bool)
    expected, entropies = _definition(
        loss,
        batch,
        weights,
        gate,
        mse_weights,
        positives={"target": list(range(size)), "input": [0, 1, -1, 3, 4, -1]},
        excluded={"target": same_video, "input": same_video},
    )
    (expected_grad,) = torch.autograd.grad(expected, batch["prediction"])
    out = loss(**batch, groups=groups, has_condition=has_condition)
    (grad,) = torch.autograd.grad(out.loss, batch["prediction"])

    assert out.loss.dtype == torch.float32 and set(out.contrastive) == set(weights)
    torch.testing.assert_close(out.loss.double(), expected, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=2e-4, atol=1e-6)
    for name, entropy in entropies.items():
        torch.testing.assert_close(out.contrastive[name].double(), entropy, rtol=2e-5, atol=1e-6)
    parts = out.mse + sum(weights[name] * value for name, value in out.contrastive.items())
    torch.testing.assert_close(out.loss, parts)
    assert not out.mse.requires_grad and not any(v.requires_grad for v in out.contrastive.values())


def test_baseline_is_the_plain_diffusion_loss() -> None:
    loss = ContrastiveDiffusionLoss(_config("epsilon"), banks={})
    batch = _batch(loss.schedule)
    out = loss(**batch)
    expected = torch.nn.functional.mse_loss(batch["prediction"], batch["noise"])
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.mse, expected.detach())
    assert out.contrastive == {} and loss.retrieval_accuracy(**_query(batch)) == {}
    expected_grad = 2 * (batch["prediction"] - batch["noise"]).detach() / batch["prediction"].numel()
    torch.testing.assert_close(torch.autograd.grad(out.loss, batch["prediction"])[0], expected_grad)


def test_defaults_are_the_default_recipe() -> None:
    loss = ContrastiveDiffusionLoss(_config("epsilon"))
    assert (loss.banks, loss.temperature, loss.normalize, loss.gate) == (
        {"target": 0.2},
        0.07,
        True,
        "signal",
    )
    assert not list(loss.parameters()) and "temperature=0.07" in repr(loss)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_min_snr_weighs_the_x0_error(prediction_type: str) -> None:
    schedule = NoiseSchedule.from_config(_config(prediction_type))
    batch = _batch(schedule)
    t = batch["timesteps"]
    c_skip, c_out = (c[:, None, None, None].double() for c in schedule.coefficients(t))
    x0 = c_skip * batch["noisy_latents"] + c_out * batch["prediction"]
    error = (x0 - batch["clean_latents"]).square().mean((1, 2, 3))
    target = schedule.target(batch["clean_latents"], batch["noise"], t)
    regression = (batch["prediction"] - target).square().mean((1, 2, 3))
    weights = min_snr_weights(schedule, t, 2.0)
    expected = schedule.snr(t).clamp(max=2.0).double() * error
    torch.testing.assert_close((weights * regression).double(), expected, rtol=1e-3, atol=1e-5)
    assert (schedule.snr(t) > 2).any() and (schedule.snr(t) < 2).any()


def test_min_snr_survives_clean_and_empty_timesteps() -> None:
    flow = NoiseSchedule("flow", None, 1000)
    ends = min_snr_weights(flow, torch.tensor([0.0, 1000.0]), 5.0)
    torch.testing.assert_close(ends, torch.zeros(2))
    empty = NoiseSchedule.from_config({**_config("v_prediction"), "rescale_betas_zero_snr": True})
    assert min_snr_weights(empty, torch.tensor([999]), 5.0).item() == 0


def test_without_conditions_the_input_bank_is_silent() -> None:
    loss = ContrastiveDiffusionLoss(_config("epsilon"), banks={"input": 1.0, "target": 1.0}, gate="none")
    batch = _batch(loss.schedule)
    nobody = torch.zeros(SHAPE[0], dtype=torch.bool)
    out = loss(**batch, has_condition=nobody)
    assert out.contrastive["input"] == 0 and out.contrastive["target"] > 0
    accuracy = loss.retrieval_accuracy(**_query(batch), has_condition=nobody)
    assert accuracy["input"].isnan() and not accuracy["target"].isnan()


def test_max_timestep_silences_the_noisy_queries() -> None:
    schedule = NoiseSchedule.from_config(_config("epsilon"))
    batch = _batch(schedule)
    limit = int(batch["timesteps"].sort().values[2])
    everyone = ContrastiveDiffusionLoss(schedule, banks={"target": 1.0}, gate="none")
    limited = ContrastiveDiffusionLoss(schedule, banks={"target": 1.0}, gate="none", max_timestep=limit)
    quiet = batch["timesteps"] > limit
    assert quiet.sum() == 3
    rows = torch.arange(SHAPE[0]).masked_fill(quiet, -1)
    out = limited(**batch)
    torch.testing.assert_close(out, everyone(**batch, positives={"target": rows}))
    gated = ContrastiveDiffusionLoss(schedule, banks={"target": 1.0}, max_timestep=limit)
    assert 0 < gated(**batch).contrastive["target"] < out.contrastive["target"]


def test_a_wider_bank_with_positives_and_groups() -> None:
    # what other ranks or a queue add: rows that are nobody's positive, some of them from a query's own video
    loss = ContrastiveDiffusionLoss(_config("v_prediction"), banks={"target": 1.0}, gate="none")
    batch = _batch(loss.schedule)
    clean = batch["clean_latents"]
    torch.manual_seed(1)
    shuffle = torch.tensor([5, 0, 3, 1, 4, 2])
    batch["banks"] = {"target": torch.cat([torch.randn(3, *SHAPE[1:]), clean[shuffle]])}
    positives = {"target": shuffle.argsort() + 3}
    groups = torch.arange(SHAPE[0])
    marks = {"target": torch.cat([torch.tensor([0, 0, 99]), groups[shuffle]])}

    out = loss(**batch, positives=positives, groups=groups, bank_groups=marks)
    excluded = torch.zeros(SHAPE[0], 9, dtype=torch.bool)
    excluded[0, :2] = True
    ones = torch.ones(SHAPE[0], dtype=torch.float64)
    expected, _ = _definition(
        loss,
        batch,
        {"target": 1.0},
        ones,
        ones,
        {"target": positives["target"].tolist()},
        {"target": excluded},
    )
    torch.testing.assert_close(out.loss.double(), expected, rtol=2e-5, atol=1e-6)
    with pytest.raises(InputError, match="bank 'target' has 9 rows for 6 queries.*expected bank_groups"):
        loss(**batch, positives=positives, groups=groups)


def test_a_better_prediction_lowers_the_loss_and_raises_the_accuracy() -> None:
    loss = ContrastiveDiffusionLoss(_config("epsilon"), banks={"target": 1.0}, gate="none")
    batch = _batch(loss.schedule)
    wrong = batch["clean_latents"].roll(1, 0)
    noisy, t = batch["noisy_latents"], batch["timesteps"]
    c_skip, c_out = (c[:, None, None, None] for c in loss.schedule.coefficients(t))
    mistaken = {**batch, "prediction": (wrong - c_skip * noisy) / c_out}
    perfect = {**batch, "prediction": batch["noise"]}
    assert loss(**perfect).contrastive["target"] < 0.01 < 5 < loss(**mistaken).contrastive["target"]
    assert loss.retrieval_accuracy(**_query(perfect))["target"] == 1
    assert loss.retrieval_accuracy(**_query(mistaken))["target"] == 0


@pytest.mark.parametrize("normalize", [True, False])
def test_retrieval_accuracy_counts_by_hand(normalize: bool) -> None:
    loss = ContrastiveDiffusionLoss(_config("sample"), banks={"input": 1.0, "target": 1.0}, normalize=normalize)
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0], [-1.0, 0.0]])
    prediction = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 1.0], [-1.0, 0.0]])
    args = (prediction, torch.zeros(4, 2), torch.tensor([1, 2, 3, 4]), {"input": bank, "target": bank})
    # cosines: rows 0, 2, 3 are right; dot products: row 2 of the bank draws rows 0 and 1 too
    right = [True, False, True, True] if normalize else [False, False, True, True]
    accuracy = loss.retrieval_accuracy(*args, has_condition=torch.tensor([True, True, False, True]))
    assert accuracy["target"] == sum(right) / 4
    assert accuracy["input"] == pytest.approx((right[0] + right[1] + right[3]) / 3)
    # queries 0, 1 and 2 share a video, so only row 3 of the bank is a negative for them
    assert loss.retrieval_accuracy(*args, groups=torch.tensor([0, 0, 0, 1]))["target"] == 1
    collapsed = (torch.zeros(4, 2), *args[1:])
    assert loss.retrieval_accuracy(*collapsed)["target"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions(dtype: torch.dtype) -> None:
    loss = ContrastiveDiffusionLoss(_config("v_prediction"), banks={"target": 0.2})
    batch = _batch(loss.schedule)
    expected = loss(**batch)
    batch["prediction"] = batch["prediction"].detach().to(dtype).requires_grad_()
    out = loss(**batch)
    out.loss.backward()
    assert out.loss.dtype == torch.float32 and batch["prediction"].grad.dtype == dtype
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-2, atol=1e-3)


def test_finite_at_the_ends_of_the_schedule() -> None:
    for config in (_config("epsilon"), {**_config("v_prediction"), "rescale_betas_zero_snr": True}):
        loss = ContrastiveDiffusionLoss(config, banks={"input": None, "target": 0.2}, min_snr_gamma=5.0)
        batch = _batch(loss.schedule)
        batch["timesteps"] = torch.tensor([0, 0, 1, 998, 999, 999])
        out = loss(**batch)
        out.loss.backward()
        assert out.loss.isfinite() and batch["prediction"].grad.isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0; expected a number > 0"),
        ({"gate": "snr"}, "gate='snr'; expected one of none, signal"),
        ({"min_snr_gamma": -1.0}, "min_snr_gamma=-1.0"),
        ({"max_timestep": -3.0}, "max_timestep=-3.0; expected a number >= 0"),
        ({"max_timestep": float("nan")}, "max_timestep=nan; expected a number >= 0"),
        ({"banks": {"target": -0.5}}, "weight of bank 'target' is -0.5"),
        ({"banks": {"target": float("nan")}}, "weight of bank 'target' is nan"),
    ],
)
def test_bad_settings(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ContrastiveDiffusionLoss(_config("epsilon"), **kwargs)
    with pytest.raises(InputError, match="zero terminal SNR"):
        ContrastiveDiffusionLoss({**_config("epsilon"), "rescale_betas_zero_snr": True})


def test_bad_banks() -> None:
    loss = ContrastiveDiffusionLoss(_config("epsilon"), banks={"text": 1.0})
    batch = _batch(loss.schedule)
    with pytest.raises(InputError, match=r"banks has \['input', 'target'\].*expected also \['text'\]"):
        loss(**batch)
    batch["banks"] = {"text": torch.randn(3, *SHAPE[1:])}
    with pytest.raises(InputError, match="bank 'text' has 3 rows for 6 queries and no positives"):
        loss(**batch)
    with pytest.raises(InputError, match="bank_groups was given without groups"):
        loss(**{**batch, "banks": {"text": torch.randn(*SHAPE)}}, bank_groups={"text": torch.arange(6)})


def test_needs_torch_alone() -> None:
    blocked = ("diffusers", "transformers", "accelerate", "safetensors", "av", "decord", "tyro")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "import contrastive_i2v.losses, contrastive_i2v.diffusion"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
