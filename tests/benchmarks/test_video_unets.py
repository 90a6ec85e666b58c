"""The comparison of video networks at its smallest size, and the pages that its results make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import environment, report, video_report, video_unets
from benchmarks.counting import LiveBytes, count
from benchmarks.video_networks import NETWORKS, SIZES, Batch

SMALLEST = ["--timed-size", "smallest", "--timed-side", "4", "--rounds", "1", "--seconds", "0", "--counted-size"]
RESULTS = environment.ROOT / "benchmarks" / "results" / "video"


def test_live_bytes_are_what_is_alive() -> None:
    memory = LiveBytes()
    with memory:
        first = torch.zeros(100)
        view = first[:50]
        second = first + 1
        assert memory.live == 800
        del first
        assert memory.live == 800  # the view holds it
        del view, second
    assert memory.live == 0 and memory.peak == 800


def test_what_is_kept_for_the_backward_pass_is_counted() -> None:
    memory = LiveBytes()
    weight = torch.randn(8, 8, requires_grad=True)
    memory.add(weight)
    with memory:
        x = torch.randn(4, 8)
        loss = (x @ weight).relu().sum()
        assert memory.live == 4 * (64 + 32 + 32 + 1)  # weight, x, relu's output, loss; the product itself is gone
        loss.backward()
        assert memory.live == 4 * (64 + 32 + 1 + 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours: ConsistI2V", "ours: Emu Video", "UNetMotionModel"])
def test_counts_are_those_of_a_real_pass(name: str) -> None:
    size = SIZES["smallest"]
    counts = count(NETWORKS[name], size, 4, checkpointing=False)
    network, batch = NETWORKS[name](size), Batch.random(size, 4)
    assert counts is not None
    assert counts.parameters == sum(part.numel() for part in network.module.parameters())
    assert counts.gradients == 4 * counts.trained == 4 * sum(part.numel() for part in network.trained)
    memory = LiveBytes()
    for tensor in (*network.module.parameters(), *network.module.buffers()):
        memory.add(tensor)
    with memory, torch.no_grad():
        network.predict(batch)  # the batch is counted from here on
    before = memory.live
    with memory:
        loss = network.loss(batch)
    assert memory.live - before == pytest.approx(counts.kept, rel=0.01) and loss.requires_grad
    with FlopCounterMode(display=False) as convolutions, torch.no_grad():
        network.predict(batch)
    fused = counts.forward_flop - convolutions.get_total_flops()  # torch doesn't count the CPU's fused attention
    assert 0 < fused < 0.3 * counts.forward_flop


@pytest.mark.slow
def test_checkpointing_keeps_less_and_computes_more() -> None:
    plain, saving = (
        count(NETWORKS["ours: ConsistI2V"], SIZES["smallest"], 8, checkpointing=on) for on in (False, True)
    )
    assert plain is not None and saving is not None
    assert saving.kept < plain.kept / 3 and saving.step_flop > plain.step_flop
    assert saving.training_peak < plain.training_peak and saving.forward_flop == plain.forward_flop
    assert count(NETWORKS["UNet3DConditionModel"], SIZES["smallest"], 4, checkpointing=True) is None


@pytest.mark.parametrize("name", ["ours: ConsistI2V", "ours: Emu Video, all trained"])
def test_checkpointing_leaves_the_gradients(name: str) -> None:
    size, gradients = SIZES["smallest"], []
    batch = Batch.random(size, 4)
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = NETWORKS[name](size)
        generator = torch.Generator().manual_seed(1)
        for part in network.trained:  # past the zeros that temporal layers start from
            part.data += 0.05 * torch.randn(part.shape, generator=generator)
        if checkpointing:
            assert network.checkpoint()
        network.loss(batch).backward()
        gradients.append([part.grad for part in network.trained])
    for plain, saving in zip(*gradients, strict=True):
        assert plain is not None and saving is not None
        torch.testing.assert_close(saving, plain)


@pytest.mark.processes
def test_the_peak_of_a_process() -> None:
    peaks = [video_unets.peak("UNetMotionModel", "smallest", 8, what) for what in ("step", "sample")]
    if None in peaks:
        pytest.skip("this system tells no peak")
    assert peaks[0] > peaks[1] > 0  # type: ignore[operator]


@pytest.mark.slow
def test_a_run_and_the_pages_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("image UNet, frame by frame", "ours: ConsistI2V", "ours: Emu Video", "UNet3DConditionModel")
    monkeypatch.setattr(video_unets, "NETWORKS", {name: NETWORKS[name] for name in few})
    monkeypatch.setattr(video_unets, "peak", lambda *_: 3 << 20)
    monkeypatch.setattr(video_unets.torch, "set_num_threads", lambda count: None)
    path = tmp_path / "video" / "one.json"
    video_unets.main([*SMALLEST, "smallest", "--counted-sides", "4", "--json", str(path)])
    found = json.loads(path.read_text())
    assert [row["network"] for row in found["timed"]["rows"]] == list(few)
    assert all(row["step"]["median_us"] > 0 for row in found["timed"]["rows"])
    assert len(found["counted"]["rows"]) == 2 * len(few)

    text = video_report.performance(path.parent)
    assert text.count("| ours: ConsistI2V |") == 2 and "not possible" in text and "3.0 MiB" in text
    page = tmp_path / "systems.md"
    page.write_text(f"# Systems\n\n{video_report.BEGIN}\nold\n{video_report.END}\n\nMore.\n")
    report.write_costs(page, path.parent)
    written = page.read_text()
    assert "old" not in written and "| Emu Video, video |" in written and written.endswith("More.\n")


def test_a_network_without_a_gradient_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def unused(size: Any) -> Any:
        network = NETWORKS["image UNet, frame by frame"](size)
        network.trained.append(torch.nn.Parameter(torch.zeros(1)))
        return network

    monkeypatch.setitem(video_unets.NETWORKS, "unused", unused)
    with pytest.raises(RuntimeError, match="unused: a trained parameter got no finite gradient"):
        video_unets.Contender("unused", "smallest", 4)


def test_the_page_holds_the_costs_of_the_results() -> None:
    page = (environment.ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    held = page.split(video_report.BEGIN)[1].split(video_report.END)[0].strip()
    assert held == video_report.costs(RESULTS), "python -m benchmarks report writes it again"
