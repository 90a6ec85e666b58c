"""The step of Wan beside finetrainers': both train the same network on the same inputs, and the page that it makes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from benchmarks import data_report, transformer_step
from benchmarks.plan import Measured
from benchmarks.transformer_step import PEER, Case, Finetrainers, Ours, prepare
from contrastive_i2v.training.config import LossConfig, TimestepsConfig
from contrastive_i2v.training.inputs import make_inputs

NAMES = {PEER, *transformer_step.OURS}


@pytest.fixture(scope="module", params=["channels", "clean-latent"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(image_condition=request.param, batch_size=2)


@pytest.fixture(scope="module")
def work(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer_step, "CLIPS", 2)
        prepare(folder, case)
    return folder


@pytest.mark.parametrize("rank", [0, 2])
def test_both_train_the_same_network_on_the_same_inputs(case: Case, work: Path, rank: int) -> None:
    case = replace(case, rank=rank)
    theirs, ours = Finetrainers(work, case), Ours(work, case, LossConfig())
    system: Any = ours.trainer.system
    dataset: Any = ours.trainer.dataset
    networks = [theirs.transformer, system.transformer]
    weights = [dict(network.named_parameters()) for network in networks]
    trained = [{name for name, weight in one.items() if weight.requires_grad} for one in weights]
    assert trained[0] == trained[1] and weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items() if "lora" not in name)

    told, target = theirs.inputs(theirs.load())
    batch = default_collate([dataset[number] for number in range(case.batch_size)])
    options: Any = {"schedule": system.schedule, "timesteps": TimestepsConfig(), "generator": torch.Generator()}
    inputs = make_inputs(batch, system, conditioning_dropout=0.0, **options)
    torch.testing.assert_close(told["encoder_hidden_states"], inputs.condition["prompt_embeds"])
    if case.image_condition == "channels":
        torch.testing.assert_close(told["hidden_states"][:, 4:], inputs.condition["known"].transpose(1, 2))
        torch.testing.assert_close(told["encoder_hidden_states_image"], inputs.condition["image_embeds"])
    assert told["hidden_states"].shape[2:] == target.shape[2:] == (3, 8, 8)

    before = [{name: one[name].detach().clone() for name in trained[0]} for one in weights]
    for one in (theirs, ours):
        one.step()
        one.step()  # the learning rate of the first is 0
    for then, now in zip(before, weights, strict=True):
        assert any(not torch.equal(value, now[name]) for name, value in then.items())
    assert theirs.clock.seconds.keys() == ours.clock.seconds.keys()


@pytest.mark.slow
def test_a_run_makes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def memory(work: Path, case: Case, name: str) -> Measured:
        """As the child process answers."""
        transformer_step.main(["--memory-of", json.dumps([str(work), asdict(case), name])])
        return Measured(**json.loads(capsys.readouterr().out.splitlines()[-1]))

    monkeypatch.setattr(transformer_step, "memory", memory)
    monkeypatch.setattr(transformer_step, "CLIPS", 4)
    output = tmp_path / "transformer-step-one.json"
    transformer_step.main(["--rounds", "1", "--batch-size", "2", "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert [row["rank"] for row in rows] == [transformer_step.RANK, 0]
    for row in rows:
        assert set(row["milliseconds"]) == set(row["memory"]) == NAMES
        assert all(sum(row["parts"][name].values()) <= row["milliseconds"][name] for name in NAMES)
        assert all(row["memory"][name]["tensors"] > 0 for name in NAMES)
    page = data_report.performance(tmp_path)
    assert page.count("| all weights, of 0.1 M |") == page.count("| LoRA of rank 32, of 0.1 M |") == 3
