"""The noise schedule against diffusers' own schedulers and against its definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contrastive_i2v.diffusion import (
    NoiseSchedule,
    edm_coefficients,
    rescale_zero_terminal_snr,
    variance_preserving_coefficients,
)
from contrastive_i2v.errors import InputError

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TIMESTEPS = torch.tensor([1, 120, 501, 850, 998])


def _x0(schedule: NoiseSchedule, noisy: torch.Tensor, prediction: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    c_skip, c_out = schedule.coefficients(t)
    assert c_skip.dtype == c_out.dtype == torch.float32 and c_skip.shape == t.shape
    return c_skip[:, None] * noisy + c_out[:, None] * prediction


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "kwargs",
    [
        SD,
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": torch.linspace(1e-3, 0.01, 1000).tolist()},
    ],
)
def test_x0_is_what_ddim_says(prediction_type: str, kwargs: dict[str, Any]) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False, **kwargs)
    schedule = NoiseSchedule.from_config(scheduler.config)
    scheduler.set_timesteps(1000)
    torch.manual_seed(0)
    noisy, prediction = torch.randn(2, len(TIMESTEPS), 7)
    expected = torch.stack(
        [scheduler.step(prediction[i], int(t), noisy[i]).pred_original_sample for i, t in enumerate(TIMESTEPS)]
    )
    # float32 cumulative products in diffusers are good to about 1e-5 a factor of sqrt(abar)
    torch.testing.assert_close(_x0(schedule, noisy, prediction, TIMESTEPS), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_diffusers(prediction_type: str) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False, rescale_betas_zero_snr=True, **SD)
    schedule = NoiseSchedule.from_config(scheduler.config)
    assert schedule.alphas_cumprod is not None and schedule.alphas_cumprod[-1] == 0
    torch.testing.assert_close(schedule.alphas_cumprod, scheduler.alphas_cumprod.double(), rtol=1e-3, atol=1e-6)
    c_skip, c_out = schedule.coefficients(torch.tensor([999]))
    assert (c_skip.item(), c_out.item()) == ((0, -1) if prediction_type == "v_prediction" else (0, 1))


def test_epsilon_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(InputError, match="epsilon.*zero terminal SNR.*use prediction_type='v_prediction'"):
        NoiseSchedule.from_config({**SD, "rescale_betas_zero_snr": True, "prediction_type": "epsilon"})


def test_rescaling_keeps_the_first_and_empties_the_last() -> None:
    before = NoiseSchedule.from_config(SD).alphas_cumprod
    assert before is not None
    after = rescale_zero_terminal_snr(before)
    torch.testing.assert_close(after[0], before[0])
    assert after[-1] == 0 and (after.diff() < 0).all()


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noising_and_targets_are_diffusers(name: str, prediction_type: str) -> None:
    import diffusers

    config = getattr(diffusers, name)(prediction_type=prediction_type, **SD).config
    schedule = NoiseSchedule.from_config(config)
    reference = diffusers.DDPMScheduler.from_config(config)
    torch.manual_seed(0)
    clean, noise = torch.randn(2, len(TIMESTEPS), 4, 3, 3)
    noisy = schedule.add_noise(clean, noise, TIMESTEPS)
    torch.testing.assert_close(noisy, reference.add_noise(clean, noise, TIMESTEPS), rtol=1e-4, atol=1e-4)
    target = schedule.target(clean, noise, TIMESTEPS)
    expected = noise if prediction_type == "epsilon" else reference.get_velocity(clean, noise, TIMESTEPS)
    torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_true_target_gives_back_the_clean_sample(prediction_type: str) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler"} if prediction_type == "flow" else SD
    schedule = NoiseSchedule.from_config({**config, "prediction_type": prediction_type})
    assert schedule.prediction_type == prediction_type
    timesteps = schedule.sample_timesteps(64, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 64, 5)
    noisy = schedule.add_noise(clean, noise, timesteps)
    x0 = _x0(schedule, noisy, schedule.target(clean, noise, timesteps), timesteps)
    torch.testing.assert_close(x0, clean, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_flow_match_euler(shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = NoiseSchedule.from_config(scheduler.config)
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps[[0, 3, 9]]
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 3, 6)
    noisy = schedule.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(noisy, scheduler.scale_noise(clean, timesteps, noise))

    # the last step goes to sigma 0, so what it returns is the predicted x0
    prediction = torch.randn(1, 6)
    scheduler.set_begin_index(9)
    stepped = scheduler.step(prediction, timesteps[-1], noisy[-1:]).prev_sample
    torch.testing.assert_close(_x0(schedule, noisy[-1:], prediction, timesteps[-1:]), stepped)


def test_flow_prediction_of_other_schedulers_is_flow() -> None:
    from diffusers import DPMSolverMultistepScheduler

    config = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True).config
    assert NoiseSchedule.from_config(config).prediction_type == "flow"


def test_snr_and_signal() -> None:
    schedule = NoiseSchedule.from_config(SD)
    assert schedule.alphas_cumprod is not None
    abar = schedule.alphas_cumprod[TIMESTEPS]
    torch.testing.assert_close(schedule.signal(TIMESTEPS), abar.float())
    torch.testing.assert_close(schedule.snr(TIMESTEPS), (abar / (1 - abar)).float())
    flow = NoiseSchedule("flow", None, 1000)
    timesteps = torch.tensor([0.0, 250.0, 1000.0])
    torch.testing.assert_close(flow.signal(timesteps), torch.tensor([1.0, 0.5625, 0.0]))
    torch.testing.assert_close(flow.snr(timesteps), torch.tensor([torch.inf, 9.0, 0.0]))


def test_edm_coefficients_minimise_the_error_amplification() -> None:
    # with F of unit variance both x_in and the effective target have unit variance (arXiv 2206.00364, B.6)
    sigma = torch.tensor([0.01, 0.5, 20.0], dtype=torch.float64)
    c_skip, c_out = edm_coefficients(sigma, sigma_data=0.5)
    torch.testing.assert_close(c_out**2, (1 - c_skip) ** 2 * 0.25 + c_skip**2 * sigma**2)
    assert c_skip[1] == 0.5


def test_edm_and_v_prediction_agree() -> None:
    # EDM at sigma_data = 1 is v prediction on x / sqrt(1 + sigma^2), with the sign of F turned
    sigma = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    scale = (1 + sigma**2).sqrt()
    c_skip, c_out = variance_preserving_coefficients("v_prediction", 1 / (1 + sigma**2))
    edm_skip, edm_out = edm_coefficients(sigma, sigma_data=1.0)
    torch.testing.assert_close(edm_skip, c_skip / scale)
    torch.testing.assert_close(edm_out, -c_out)


def test_timesteps_cover_the_range_and_repeat() -> None:
    schedule = NoiseSchedule.from_config({**SD, "num_train_timesteps": 10})
    first = schedule.sample_timesteps(500, torch.Generator().manual_seed(3))
    assert first.dtype == torch.int64 and sorted(set(first.tolist())) == list(range(10))
    assert torch.equal(first, schedule.sample_timesteps(500, torch.Generator().manual_seed(3)))
    flow = NoiseSchedule("flow", None, 10).sample_timesteps(2000, torch.Generator().manual_seed(3))
    assert flow.dtype == torch.float32 and 0 < flow.min() < 0.1 and 9.9 < flow.max() <= 10


def test_add_noise_keeps_the_dtype() -> None:
    clean, noise = torch.randn(2, 5, 4).bfloat16()
    for prediction_type in ("v_prediction", "flow"):
        config = {**SD, "prediction_type": prediction_type}
        schedule = NoiseSchedule.from_config(config)
        timesteps = schedule.sample_timesteps(5)
        assert schedule.add_noise(clean, noise, timesteps).dtype == torch.bfloat16
        assert schedule.target(clean, noise, timesteps).dtype == torch.bfloat16


BAD_STEPS = (0, -3, 1.5, 10**9, 10**400, "x", None, True, [])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5},
            "beta_schedule=None in the config of EDMEuler",
        ),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({**SD, "prediction_type": "score"}, "prediction_type='score'; expected one of epsilon"),
        ({**SD, "trained_betas": [0.1, 0.2]}, r"alphas_cumprod has shape \(2,\); expected \(1000,\)"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas=True"),
        *(({**SD, "num_train_timesteps": n}, "num_train_timesteps=.*at least 1") for n in BAD_STEPS),
        *(({"_class_name": "FlowMatch", "num_train_timesteps": n}, "num_train_timesteps=") for n in BAD_STEPS),
        ({**SD, "beta_end": "x"}, "beta_end in the config of .*; expected numbers"),
        ({**SD, "beta_end": 1.5}, "1.5 are not between 0 and 1"),
        ({**SD, "trained_betas": ["x"]}, "trained_betas, .*; expected numbers"),
        ([], "config is a list; expected a mapping"),
    ],
)
def test_what_it_cannot_express_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NoiseSchedule.from_config(config)


def test_float_timesteps_are_refused_where_integers_index() -> None:
    with pytest.raises(InputError, match="timesteps has dtype torch.float32; expected integers"):
        NoiseSchedule.from_config(SD).coefficients(torch.tensor([0.5]))
