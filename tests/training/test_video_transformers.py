"""Video transformers in training: their losses, resuming, half precision, adapters, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from runs import assert_same_run, beside, last_tensors, train_until
from torch import Tensor
from torch.nn import functional as F
from watched import Watched

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import SYSTEMS, load_system
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.models.ltx_video import LTXVideoConfig
from contrastive_i2v.models.wan import WanConfig
from contrastive_i2v.system import SystemConfig
from contrastive_i2v.training.config import (
    DataConfig,
    LossConfig,
    OptimizerConfig,
    OwnSamplesConfig,
    PreviewConfig,
    TimestepsConfig,
    TrainConfig,
    ValidationConfig,
)
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.plan import Planner
from contrastive_i2v.training.trainer import Trainer

FAMILIES: dict[str, SystemConfig] = {
    "wan-channels": WanConfig(image_condition="channels"),
    "wan-clean-latent": WanConfig(image_condition="clean-latent"),
    "wan-history": WanConfig(image_condition="clean-latent", past_frames=2, frame_timesteps=True),
    "ltx-video": LTXVideoConfig(),
    "ltx-history": LTXVideoConfig(past_frames=2, frame_timesteps=True),
}
Config = Callable[[str], TrainConfig]


@pytest.fixture(scope="module")
def shared(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Tiny random models on 32x32 clips; one cache for all."""
    folder = tmp_path_factory.mktemp("transformers")

    def make(family: str) -> TrainConfig:
        model = folder / family
        if not model.exists():
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(0)
                SYSTEMS[FAMILIES[family].kind].random(FAMILIES[family]).save(model)
        return TrainConfig(
            output=folder / "run",
            model=str(model),
            system=FAMILIES[family],
            steps=4,
            batch_size=3,
            ema_decay=0.9,
            log_every=1,
            checkpoint_every=2,
            conditioning_dropout=0.2,
            data=DataConfig(
                path=clips / "train",
                validation_path=clips / "test",
                cache_dir=folder / "latents",
                resolution=32,
                frames=FramesConfig(frame_rate=12.0, offset_std=0.0, windows_per_clip=3),
            ),
            loss=LossConfig(dispersive_weight=0.1, flow_contrast_weight=0.05),
            timesteps=TimestepsConfig(distribution="logit-normal", shift=None),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
            preview=PreviewConfig(every=0),
            validation=ValidationConfig(every=0),
        )

    return make


@pytest.fixture
def config(shared: Config, tmp_path: Path) -> Config:
    return lambda family: replace(shared(family), output=tmp_path / "run")


@pytest.mark.parametrize("family", FAMILIES)
def test_training_resumes_bitwise(config: Config, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(family)
    folder = Trainer(run).run()
    broken = beside(run, "broken")
    train_until(broken, 3, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(run.output, broken.output)
    fresh = Trainer(beside(run, "fresh")).system
    start, trained = fresh.network.state_dict(), last_tensors(run)["network"]
    assert [name for name, value in start.items() if torch.equal(value, trained[name])] == []
    system = load_system(folder, device="cpu")
    assert system.config == fresh.config and (system.fps, system.size) == (12.0, (32, 32))


@pytest.mark.parametrize("family", ["wan-channels", "wan-clean-latent", "ltx-video"])
@pytest.mark.parametrize("rows", ["frame", "clip"])
def test_the_contrastive_term_is_the_float64_reference(
    config: Config, family: str, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(replace(config(family), loss=LossConfig(rows=rows), steps=1))
    seen: list[Any] = []
    forward = trainer.loss.forward

    def keep(*args: Any, **options: Any) -> Any:
        prediction, others = args[0].detach().clone(), [one.clone() for one in args[1:]]
        args[0].retain_grad()
        out = forward(*args, **options)
        seen.append((prediction, others, options["groups"], out, args[0]))
        return out

    monkeypatch.setattr(trainer.loss, "forward", keep)
    trainer.run()
    prediction, (noisy, timesteps, clean, noise), groups, out, live = seen[0]
    frames = 3 if family == "wan-channels" else 2
    assert len(prediction) == (3 * frames if rows == "frame" else 3)
    # x_t = (1 - s) x0 + s e, F = e - x0, so x0 = x_t - s F
    f, share = prediction.double().requires_grad_(), (timesteps.double() / 1000).view(-1, *[1] * (noisy.dim() - 1))
    torch.testing.assert_close(
        (1 - share) * clean.double() + share * noise.double(), noisy.double(), rtol=1e-5, atol=1e-5
    )
    estimate = (noisy.double() - share * f).flatten(1)
    logits = cosine(estimate, clean.double().flatten(1)) / 0.07
    same = (groups[:, None] == groups) & ~torch.eye(len(f), dtype=torch.bool)
    entropies = F.cross_entropy(logits.masked_fill(same, -torch.inf), torch.arange(len(f)), reduction="none")
    gated = ((1 - share.flatten()) ** 2 * entropies).mean()
    mse = (f - (noise - clean).double()).square().mean()
    torch.testing.assert_close(out.mse.double(), mse, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.contrastive["target"].double(), gated, rtol=1e-4, atol=1e-5)
    (mse + 0.2 * gated).backward()
    torch.testing.assert_close(live.grad.double(), f.grad, rtol=1e-3, atol=1e-6)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return F.normalize(one, dim=1) @ F.normalize(other, dim=1).T


@pytest.fixture
def another_precision() -> Iterator[None]:
    _forget_precision()
    yield
    _forget_precision()


def _forget_precision() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.usefixtures("another_precision")
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_trains(config: Config, family: str) -> None:
    run = replace(config(family), mixed_precision="bf16")
    Trainer(run).run()
    rows = [row for row in read_log(run.output / "log.jsonl") if "loss" in row]
    assert len(rows) == 4 and all(math.isfinite(row["loss"]) and not row["nonfinite_steps"] for row in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_goes_down_and_previews(config: Config, family: str) -> None:
    run = config(family)
    run = replace(
        run,
        steps=40,
        batch_size=6,
        conditioning_dropout=0.0,
        checkpoint_every=100,
        loss=LossConfig(target_weight=0.0),
        timesteps=TimestepsConfig(),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
        preview=PreviewConfig(every=40, clips=2, frames=12, steps=2),
        validation=ValidationConfig(every=10, clips=2, timesteps=4),
    )
    Trainer(run).run()
    rows = read_log(run.output / "log.jsonl")
    found = [row["validation/mse"] for row in rows if "validation/mse" in row]
    assert found[-1] < 0.92 * found[0]
    assert math.isfinite(rows[-1]["preview/last_frame_mse"]) and (run.output / "previews/step-00000040.mp4").exists()


def test_given_frames_by_number_are_drawn(config: Config) -> None:
    """A window of three latents is given one or two of them, alike in a batch."""
    trainer = Trainer(replace(config("wan-history"), steps=12, checkpoint_every=100))
    counts = []
    trainer.system.network.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append((args[0].shape[1], kwargs["history"].shape[1])), with_kwargs=True
    )
    trainer.run()
    assert set(counts) == {(2, 1), (1, 2)}


def test_what_is_told_by_pixels_takes_no_noise_and_no_own_samples(config: Config) -> None:
    run = config("wan-channels")
    with pytest.raises(InputError, match="condition_noise=0.1: wan is told of given frames by their pixels"):
        Trainer(replace(run, condition_noise=0.1))
    own = OwnSamplesConfig(contrast_share=0.5, depth=1, clips=2, refresh=2, steps=1)
    with pytest.raises(InputError, match="own_samples: wan is told of given frames by their pixels"):
        Trainer(replace(run, own_samples=own, loss=LossConfig(own_weight=0.1)))
    with pytest.raises(InputError, match="loss.rows=clip: with system.past_frames above 1"):
        system = WanConfig(image_condition="clean-latent", past_frames=2)
        Trainer(replace(config("wan-clean-latent"), system=system, loss=LossConfig(rows="clip")))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan-channels", "wan-clean-latent"])
def test_adapters_train_on_rounded_weights_one_block_at_a_time(
    family: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is trained in full beside them; the bits are those of blocks that stay."""
    lora = AdapterConfig(rank=2, base_dtype="int8")
    stays = replace(config(family), lora=lora, gradient_checkpointing=True)
    Trainer(stays).run()
    monkeypatch.setattr("contrastive_i2v.training.trainer.OffloadedBlocks", Watched)
    away = beside(stays, "away", offload_blocks=True)
    trainer = Trainer(away)
    assert trainer.blocks is not None and len(trainer.blocks.host) == 2
    trainer.run()
    assert_same_run(stays.output, away.output)
    needs = Planner("cuda").needs(replace(away, model=stays.model))
    assert needs.offloaded > 0 and needs.weights < Planner("cuda").needs(replace(stays, model=stays.model)).weights
