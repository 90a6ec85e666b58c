"""How a run computes: precision, checkpointed gradients, workers, accumulation, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from runs import SCALE, Fp16Accelerator, assert_same_run, beside, last_tensors, train_until

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.training import trainer as trainer_module
from contrastive_i2v.training.average import HostAverage
from contrastive_i2v.training.batches import build_loader
from contrastive_i2v.training.checkpoint import list_checkpoints, load_checkpoint
from contrastive_i2v.training.config import LossConfig, TrainConfig, load_config
from contrastive_i2v.training.inputs import join
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.precision import float32_products, resolved
from contrastive_i2v.training.trainer import Trainer, is_trained, use_channels_last


def forget_accelerate() -> None:
    """accelerate keeps one precision a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    forget_accelerate()
    yield
    forget_accelerate()


def run(config: TrainConfig) -> dict[str, dict[str, torch.Tensor]]:
    """Train; returns what the last checkpoint holds."""
    forget_accelerate()
    Trainer(config).run()
    return last_tensors(config)


def assert_finite_but_other(plain: TrainConfig, other: TrainConfig) -> None:
    """Finite weights and losses near those of float32, but not the same."""
    a, b = last_tensors(plain)["network"], last_tensors(other)["network"]
    assert a.keys() == b.keys()
    assert {value.dtype for value in b.values()} == {torch.float32}  # the weights themselves stay in float32
    assert all(value.isfinite().all() for value in b.values())
    assert not all(torch.equal(a[name], b[name]) for name in a)
    losses = [[row["loss"] for row in read_log(config.output / "log.jsonl")] for config in (plain, other)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)


def test_bf16_trains_and_is_another_precision(train_config: TrainConfig) -> None:
    config = replace(train_config, steps=4)
    run(config)
    half = beside(config, "half", mixed_precision="bf16")
    run(half)
    assert_finite_but_other(config, half)


class Ampere:
    """What torch says of a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bf16"), ((7, 5), "no")])
def test_auto_is_bf16_where_a_gpu_has_it(
    train_config: TrainConfig, capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ampere(monkeypatch, capability=capability)
    auto = replace(train_config, mixed_precision="auto")
    assert resolved(auto, torch.device("cuda")).mixed_precision == precision
    assert resolved(auto, torch.device("cpu")).mixed_precision == "no"
    assert resolved(replace(auto, mixed_precision="fp16"), torch.device("cuda")).mixed_precision == "fp16"


def test_what_auto_came_to_is_kept_and_another_device_does_not_change_it(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(train_config, mixed_precision="auto", steps=2)
    Trainer(config).run()
    assert "mixed precision no, float32 products in full" in capsys.readouterr().out
    assert load_config(TrainConfig, config.output / "config.yaml") == replace(config, mixed_precision="no")
    assert is_trained(config) and not is_trained(replace(config, mixed_precision="bf16"))
    Ampere(monkeypatch, capability=(9, 0))
    monkeypatch.setattr(trainer_module, "process_state", lambda: SimpleNamespace(device=torch.device("cuda")))
    with pytest.raises(InputError, match="mixed_precision: no -> bf16"):
        Trainer(replace(config, resume=True))


def test_tf32_is_for_gpus_that_have_it_and_ends_with_the_run(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(train_config, tf32=True)
    with pytest.raises(InputError, match="tf32: there is none on cpu"):
        Trainer(config)
    Ampere(monkeypatch, capability=(7, 5))
    with pytest.raises(InputError, match="tf32: there is none on cuda"):
        resolved(config, torch.device("cuda"))

    def state() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = state()
    for tf32, within in ((True, ("high", True)), (False, ("highest", False))):
        with float32_products(tf32):
            assert state() == within
        assert state() == before


"""So large that the first steps overflow."""


@pytest.mark.slow
def test_fp16_trains_and_its_scaler_goes_on(train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(train_config, steps=12, checkpoint_every=1, keep_checkpoints=20)
    run(config)
    monkeypatch.setattr(trainer_module, "Accelerator", Fp16Accelerator)
    half = beside(config, "half", mixed_precision="fp16")
    run(half)
    states = [load_checkpoint(path)[1] for path in list_checkpoints(half.output / "checkpoints")]
    scales, skipped = ([state[name] for state in states] for name in ("scaler", "nonfinite_steps"))
    assert 0 < skipped[-1] < 12 and scales[-1]["scale"] == SCALE * 0.5 ** skipped[-1]
    assert scales[-1]["_growth_tracker"] > 0
    weights = last_tensors(half)["network"]
    assert all(value.isfinite().all() for value in weights.values())
    plain = last_tensors(config)["network"]
    assert not all(torch.equal(plain[name], weights[name]) for name in weights)

    broken = beside(half, "broken")
    forget_accelerate()
    train_until(broken, skipped[-1] - 1, monkeypatch)  # while the scale still falls
    train_until(replace(broken, resume=True), skipped[-1] + 2, monkeypatch)  # after the first steps that count
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(half.output, broken.output)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes fp16")
def test_fp16_is_refused_where_it_would_be_left_out(train_config: TrainConfig) -> None:
    with pytest.raises(InputError, match="mixed_precision=fp16.*cpu.*expected bf16 or no"):
        Trainer(replace(train_config, mixed_precision="fp16"))


def test_checkpointed_gradients_are_the_same(train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(train_config, steps=4)
    run(config)
    checkpointed = beside(config, "checkpointed", gradient_checkpointing=True)
    calls = []
    from torch.utils import checkpoint

    original = checkpoint.checkpoint
    monkeypatch.setattr(checkpoint, "checkpoint", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    run(checkpointed)
    assert calls
    assert_same_run(config.output, checkpointed.output)


def test_a_network_that_cannot_checkpoint_its_gradients_is_refused(train_config: TrainConfig) -> None:
    system = load_system(train_config.model, train_config.system)
    system.network = torch.nn.Conv2d(4, 4, 1)  # type: ignore[assignment]
    with pytest.raises(InputError, match="gradient_checkpointing: the network of instruct-pix2pix can't"):
        Trainer(replace(train_config, gradient_checkpointing=True), system)


def test_channels_last_trains_alike_and_resumes_bitwise(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(train_config).run()
    last = beside(train_config, "last", channels_last=True)
    Trainer(last).run()
    broken = beside(last, "broken")
    train_until(broken, 3, monkeypatch)
    trainer = Trainer(replace(broken, resume=True))
    weight = trainer.system.unet.conv_in.weight
    moments = trainer.state.optimizer.optimizer.state[weight]
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert weight.stride() == moments["exp_avg"].stride() == moments["exp_avg_sq"].stride()
    trainer.run()
    assert_same_run(last.output, broken.output)
    plain, other = last_tensors(train_config)["network"], last_tensors(last)["network"]
    for name, value in plain.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-3)
    load_system(last.output / "model")
    with pytest.raises(InputError, match="channels_last: True -> False"):
        Trainer(replace(last, resume=True, channels_last=False))


def test_channels_last_leaves_convolutions_over_time_alone() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv3d(4, 4, 3), torch.nn.Linear(4, 4))
    before = [parameter.clone() for parameter in network.parameters()]
    use_channels_last(network)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert [not parameter.is_contiguous() for parameter in network.parameters()] == [True, *[False] * 5]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_run_resumes_bitwise(
    train_config: TrainConfig, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the tracer alone with checkpointed gradients and channels last, and through the C++ compiler."""
    compile, calls = torch.compile, []

    def counting(module: Any, **options: Any) -> Any:
        calls.append(options)
        return compile(module, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", counting)
    more = {"gradient_checkpointing": True, "channels_last": True} if backend == "aot_eager" else {}
    config = beside(train_config, "compiled", compile=True, steps=4, log_every=1, **more)
    Trainer(config).run()
    broken = beside(config, "broken")
    train_until(broken, 3, monkeypatch)
    torch.compiler.reset()  # as a new process starts
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)
    assert calls.count({"dynamic": False}) == 3
    plain = beside(config, "plain", compile=False)
    Trainer(plain).run()
    losses = [read_log(one.output / "log.jsonl")[0]["loss"] for one in (config, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_without_a_compiler_is_refused(train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(InputError, match="compile: torch.compile builds nothing here .*no C"):
        Trainer(replace(train_config, compile=True))


def test_the_average_on_the_cpu_has_the_same_bits_and_resumes(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(train_config).run()
    host = beside(train_config, "host", ema_on_cpu=True)
    train_until(host, 3, monkeypatch)
    trainer = Trainer(replace(host, resume=True))
    assert isinstance(trainer.state.ema, HostAverage)
    trainer.run()
    assert_same_run(train_config.output, host.output)
    first, second = (load_system(config.output / "model").unet.state_dict() for config in (train_config, host))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    with pytest.raises(InputError, match="ema_on_cpu: is of the average of ema_decay"):
        replace(host, ema_decay=0.0)


def test_workers_change_nothing(train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run(train_config)
    workers = beside(train_config, "workers", workers=2)
    run(workers)
    assert_same_run(train_config.output, workers.output)
    broken = beside(workers, "broken")
    train_until(broken, 5, monkeypatch)
    run(replace(broken, resume=True, workers=1))
    assert_same_run(train_config.output, broken.output)


def test_accumulated_gradients_are_the_mean(train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = replace(train_config.optimizer, max_grad_norm=1e9)
    loss = LossConfig(target_weight=0.0)
    config = replace(train_config, gradient_accumulation=2, optimizer=optimizer, loss=loss)
    trainer = Trainer(config)
    batches = list(islice(build_loader(trainer.dataset, config, trainer.accelerator, step=0), 2))
    assert all(len(batch.raw) == 4 for batch in batches) and not torch.equal(batches[0].raw, batches[1].raw)
    network, expected = trainer.system.network, []
    for number, batch in enumerate(batches):
        inputs = trainer._inputs(batch, number)
        prediction = network(inputs.noisy_latents, inputs.timesteps, **inputs.condition)
        error = (prediction - inputs.noise).square().mean()  # the random model predicts noise
        expected.append(torch.autograd.grad(error, list(network.parameters())))

    seen: list[torch.Tensor] = []
    parameters, step = trainer.state.trainable, trainer.state.optimizer.step

    def record() -> Any:
        seen.extend(parameter.grad.clone() for parameter in parameters)
        return step()

    monkeypatch.setattr(trainer.state.optimizer, "step", record)
    rows = trainer._train_step(batches)
    assert len(seen) == len(parameters)  # one optimizer step
    for actual, first, second in zip(seen, *expected, strict=True):
        torch.testing.assert_close(actual, (first + second) / 2, rtol=1e-4, atol=1e-6)
    assert len([row for row in rows if "loss" in row]) == 2  # the figures of both
    norm = torch.stack([((a + b) / 2).square().sum() for a, b in zip(*expected, strict=True)]).sum().sqrt()
    assert float(rows[-1]["grad_norm"]) == pytest.approx(float(norm), rel=1e-4)


def test_the_gradient_cache_contrasts_the_batches_with_each_other(train_config: TrainConfig) -> None:
    """In float64, against one graph over all rows."""
    loss = LossConfig(input_weight=0.3, gate="none", memory_bank=12)
    config = replace(train_config, gradient_accumulation=3, gradient_cache=True, loss=loss, log_every=1)
    trainer = Trainer(config, load_system(config.model, device="cpu", dtype=torch.float64))
    batches = list(islice(build_loader(trainer.dataset, config, trainer.accelerator, step=0), 3))
    network, parameters = trainer.system.network.train(), trainer.state.trainable
    parts = [trainer._inputs(batch, number) for number, batch in enumerate(batches)]
    whole = join(parts)
    assert len(whole.groups) == 12 and torch.equal(whole.noise[4:8], parts[1].noise)

    def gradients(rows: list[Any]) -> list[torch.Tensor]:
        values = [trainer._loss(trainer._predict(inputs)[0], inputs)[0] for inputs in rows]
        trainer.candidates.pending.clear()
        return list(torch.autograd.grad(torch.stack(values).mean(), parameters))

    together, apart = gradients([whole]), gradients(parts)
    (row,) = trainer._backward_together(batches)
    for parameter, one, other in zip(parameters, together, apart, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, one, rtol=1e-9, atol=1e-12)
        assert one.abs().max() < 1e-9 or not torch.allclose(one, other, rtol=1e-3)
    assert {"loss", "mse", "contrastive/target", "retrieval/input"} <= row.keys()
    trainer.candidates.remember()
    assert len(trainer.candidates.memory["target"]) == 12  # type: ignore[arg-type]
    assert network.training


def test_a_run_with_the_gradient_cache_resumes_and_costs_a_forward_pass_more(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(train_config, gradient_accumulation=2, gradient_cache=True, steps=5)
    Trainer(config).run()
    broken = beside(config, "broken")
    train_until(broken, 3, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)
    assert read_log(config.output / "log.jsonl")[-1]["units"] == pytest.approx(5 * 1.3)
    apart = beside(config, "apart", gradient_cache=False)
    Trainer(apart).run()
    losses = [read_log(run.output / "log.jsonl")[0]["contrastive/target"] for run in (config, apart)]
    assert losses[0] > losses[1]  # more negatives


def test_what_the_gradient_cache_cannot_join_is_refused(train_config: TrainConfig) -> None:
    with pytest.raises(InputError, match="gradient_cache: joins the batches of gradient_accumulation, which is 1"):
        replace(train_config, gradient_cache=True)
    with pytest.raises(InputError, match="gradient_cache: .* loss.dispersive_weight needs more"):
        replace(train_config, gradient_cache=True, gradient_accumulation=2, loss=LossConfig(dispersive_weight=0.5))


def test_accumulation_counts_optimizer_steps(train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(train_config, gradient_accumulation=2, log_every=1, checkpoint_every=1, keep_checkpoints=9)
    run(config)
    once = beside(config, "once", gradient_accumulation=1)
    run(once)
    rows, plain = (read_log(one.output / "log.jsonl") for one in (config, once))
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in plain]
    assert [row["loss"] for row in rows] != [row["loss"] for row in plain]
    optimizer = last_tensors(config)["optimizer"]
    assert {float(value) for name, value in optimizer.items() if name.endswith(".step")} == {8.0}

    broken = beside(config, "broken")
    train_until(broken, 3, monkeypatch)
    run(replace(broken, resume=True))
    assert_same_run(config.output, broken.output)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_learning_rate_at_its_ends(train_config: TrainConfig, schedule: Any) -> None:
    optimizer = replace(train_config.optimizer, schedule=schedule, warmup_steps=3, learning_rate=1e-3)
    config = replace(train_config, optimizer=optimizer, log_every=1, steps=9, checkpoint_every=1, keep_checkpoints=9)
    run(config)
    rates = [row["learning_rate"] for row in read_log(config.output / "log.jsonl")]  # of steps 0 to 8
    expected = [0.0, 1e-3 / 3, 2e-3 / 3]
    if schedule == "constant":
        expected += [1e-3] * 6
    else:
        expected += [1e-3 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert rates == pytest.approx(expected, rel=1e-9, abs=0)
    assert rates[0] == 0 and rates[3] == 1e-3 and rates[-1] > 0
    weights = load_system(config.model, device="cpu").network.state_dict()
    first, second = (
        load_checkpoint(path)[0]["network"] for path in list_checkpoints(config.output / "checkpoints")[:2]
    )
    assert all(torch.equal(first[name], weights[name]) for name in weights)  # the rate of the first step is 0
    assert not all(torch.equal(second[name], weights[name]) for name in weights)


def test_without_warm_up_the_first_step_is_at_full_rate(train_config: TrainConfig) -> None:
    optimizer = replace(train_config.optimizer, warmup_steps=0)
    config = replace(train_config, optimizer=optimizer, log_every=1, steps=2)
    run(config)
    rates = [row["learning_rate"] for row in read_log(config.output / "log.jsonl")]
    assert rates == pytest.approx([1e-3, 5e-4])
