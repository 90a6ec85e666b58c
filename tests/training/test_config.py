"""Configs: YAML and back, strictly, and what may differ on resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.errors import InputError
from contrastive_i2v.training.config import (
    LossConfig,
    OptimizerConfig,
    PreviewConfig,
    TimestepsConfig,
    TrainConfig,
    differences,
    load_config,
    save_config,
)
from contrastive_i2v.training.forms import FORMS
from contrastive_i2v.training.recipes import RECIPES, stages


@pytest.mark.parametrize("config", RECIPES.values(), ids=RECIPES)
def test_a_saved_config_starts_the_same_run(config: TrainConfig, tmp_path: Path) -> None:
    save_config(config, tmp_path / "config.yaml")
    assert load_config(TrainConfig, tmp_path / "config.yaml") == config


def test_recipes_train_with_the_registered_forms() -> None:
    for form in ("contrastive", "baseline", "literal"):
        for name in (form, f"tiny-{form}"):
            assert RECIPES[name].loss == FORMS[form].changes["loss"]
            assert RECIPES[name].output == Path("runs") / form
    assert RECIPES["contrastive"] == TrainConfig()


def test_a_staged_recipe_is_its_stages_each_from_the_model_before() -> None:
    order = ["image", "low", "high", "fine-tune", "interpolation"]
    before = {"low": "image", "high": "low", "fine-tune": "high", "interpolation": "high"}
    for staged in ("emu-video", "tiny-emu-video"):
        found = stages(staged)
        assert list(found) == [f"{staged}/{name}" for name in order]
        for name in order:
            config = found[f"{staged}/{name}"]
            assert config.output == Path("runs") / staged / name
            if name in before:
                assert config.model == f"runs/{staged}/{before[name]}"
    assert stages("tiny-consisti2v") == {"tiny-consisti2v": RECIPES["tiny-consisti2v"]}
    assert stages("tiny") == {}
    assert all(config.loss == FORMS["baseline"].changes["loss"] for name, config in RECIPES.items() if "emu" in name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "stepz"),
        ("steps: many", "steps"),
        ("steps: 0", "steps: expected at least 1, got 0"),
        ("loss: {gate: sometimes}", "gate"),
        ("a: [", "not YAML"),
    ],
)
def test_a_bad_file_is_named_with_its_field(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(TrainConfig, path)
    with pytest.raises(InputError, match=r"none\.yaml.*config\.yaml"):
        load_config(TrainConfig, tmp_path / "none.yaml")


def test_differences_are_those_that_change_the_weights() -> None:
    config = TrainConfig()
    assert differences(config, replace(config, output=Path("x"), resume=True, workers=3, log_every=1)) == []
    changed = replace(config, seed=1, loss=LossConfig(temperature=0.5))
    assert differences(config, changed) == ["seed: 0 -> 1", "loss.temperature: 0.07 -> 0.5"]


def test_the_baseline_differs_from_the_contrastive_recipe_in_the_loss_alone() -> None:
    assert differences(RECIPES["contrastive"], RECIPES["baseline"]) == ["loss.target_weight: 0.2 -> 0.0"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(condition_noise=-1.0), "condition_noise: expected at least 0, got -1.0"),
        (lambda: LossConfig(balance=0.0), "balance: expected a number > 0, got 0.0"),
        (lambda: LossConfig(balance=1.0, target_weight=0.0), "balance: target_weight and input_weight are 0"),
        (lambda: LossConfig(memory_bank=-1), "memory_bank: expected at least 0, got -1"),
        (lambda: OptimizerConfig(warmup_steps=-5), "warmup_steps: expected at least 0, got -5"),
        (lambda: OptimizerConfig(learning_rate=float("nan")), "learning_rate: expected at least 0, got nan"),
        (lambda: OptimizerConfig(learning_rate=-1e-4), "learning_rate: expected at least 0, got -0.0001"),
        (lambda: TrainConfig(workers=-1), "workers: expected at least 0, got -1"),
        (lambda: PreviewConfig(clips=0), "clips: expected at least 1, got 0"),
        (lambda: FramesConfig(frame_rate=float("inf")), r"frame_rate: expected 0.01 to 1e\+06 .* got inf"),
        (lambda: FramesConfig(frame_rate=1e9), r"frame_rate: expected 0.01 to 1e\+06 .* got 1000000000.0"),
        (lambda: OptimizerConfig(betas=(1.5, 0.9)), r"betas: expected two numbers, 0 <= beta < 1, got \(1.5, 0.9\)"),
        (lambda: OptimizerConfig(betas=(0.9, float("nan"))), r"betas: .* got \(0.9, nan\)"),
        (lambda: TimestepsConfig(logit_mean=float("nan")), "logit_mean: expected a finite number, got nan"),
        (lambda: TrainConfig(max_nonfinite_steps=0), "max_nonfinite_steps: expected at least 1, got 0"),
        (lambda: TimestepsConfig(shift=0.0), "shift: expected a number > 0, got 0.0"),
    ],
)
def test_settings_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- steps: 3\n", "holds a list; expected a mapping"),
        (b"", "holds a NoneType; expected a mapping"),
        (b"output: \xff\xfe\n", "can't be read .*utf-8"),
        (b"steps: [", "not YAML"),
        (b"steps: " + b"[" * 3000, "not YAML"),
        (b"output: 2026-99-99\n", "not YAML .*month must be in"),
        (b"a: &a [x, x]\nsteps: *a\n", "not YAML .*holds an alias"),
        (b"optimizer: {learning_rate: fast}\n", "could not convert string to float: 'fast'"),
        (b"output: null\n", ".*NoneType"),
        (b"seed: " + b"9" * 5000, "not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"config\.yaml: {said}") as refused:
        load_config(TrainConfig, path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_a_training_of_its_own_that_a_file_keeps(form: str, tmp_path: Path) -> None:
    base = TrainConfig(condition_noise=0.5)
    config = FORMS[form].apply(base)
    others = [FORMS[name].apply(base) for name in FORMS if name != form]
    assert config not in others and FORMS[form].about
    save_config(config, tmp_path / "config.yaml")
    assert load_config(TrainConfig, tmp_path / "config.yaml") == config
