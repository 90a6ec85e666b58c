"""A run's page: true while the run goes on and however it ends, whole in itself, and readable on a phone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contrastive_i2v.errors import DivergedError
from contrastive_i2v.training import run_page
from contrastive_i2v.training.config import PreviewConfig, TrainConfig, ValidationConfig
from contrastive_i2v.training.run_page import PAGE, curves, thin
from contrastive_i2v.training.trainer import Trainer

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def config(train_config: TrainConfig, clips: Path, tmp_path: Path) -> TrainConfig:
    """With held-out clips, and a file that is skipped."""
    folder = Path(shutil.copytree(clips / "train", tmp_path / "clips"))
    (folder / "<b>broken.mp4").write_bytes(b"no video")
    (folder / "<b>broken.txt").write_text("a ball")
    data = replace(train_config.data, path=folder, validation_path=clips / "test")
    preview = PreviewConfig(every=2, clips=1, frames=3, steps=1)
    return replace(train_config, data=data, preview=preview, validation=ValidationConfig(every=2), steps=4, trackers=())


def page_at(config: TrainConfig, step: int, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> str:
    """The page at the beginning of `step`, as a kill there would leave it, or where an error ends the run."""
    original, seen = Trainer._train_step, []

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.state.step == step:
            seen.append((config.output / PAGE).read_text())
            if error is not None:
                raise error
        return original(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", train_step)
        trainer = Trainer(config)
        if error is None:
            trainer.run()
            return seen[0]
        with pytest.raises(type(error)):
            trainer.run()
    return (config.output / PAGE).read_text()


def state_of(page: str) -> str:
    found = re.search(r'id="state">([^<]*)<', page)
    assert found is not None
    return found[1]


def test_a_finished_run(config: TrainConfig) -> None:
    Trainer(config).run()
    page = (config.output / PAGE).read_text()
    assert state_of(page) == "Finished: step 4 of 4. The model is in model/."
    assert "Reload" not in page and "<script" not in page  # nothing claims that it goes on
    titles = re.findall(r"<h3>([^<]*)</h3>", page)
    assert titles[:3] == ["loss", "mse", "contrastive/target"] and "mse, held-out, by timestep" in titles
    assert page.count("held-out</span>") == 4 and page.count("t = 125</span>") == 1  # mse, contrastive, two of previews
    assert 'src="data:video/mp4;base64,' in page and '<a href="previews/step-00000002.mp4">2</a>' in page
    assert "1 file left out" in page and "&lt;b&gt;broken.mp4" in page and "<b>broken" not in page
    assert "learning_rate: 0.001" in page and "<dt>torch</dt>" in page and "<dt>processes</dt><dd>1</dd>" in page
    assert not re.search(r"https?://", page)


def test_a_running_one_says_how_far_it_is_and_when_it_said_so(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = page_at(config, 0, monkeypatch)
    assert state_of(begun) == "Running when this was written: step 0 of 4."
    again = replace(config, output=config.output.with_name("again"))
    page = page_at(again, 2, monkeypatch)
    assert re.fullmatch(
        r"Running when this was written: step 2 of 4, [\d.]+ (steps a second|seconds a step) .* left at this rate.",
        state_of(page),
    )
    assert "Last written <time" in page and "at log lines, at most once in 30 s" in page
    later = replace(config, output=config.output.with_name("later"))
    assert state_of(page_at(later, 3, monkeypatch)).startswith("Running when this was written: step 2 of 4")


def test_a_log_line_writes_it_only_so_often(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, log_every=1, preview=PreviewConfig(every=0), validation=ValidationConfig(every=0))
    assert state_of(page_at(config, 3, monkeypatch)).startswith(
        "Running when this was written: step 1 of 4"
    )  # the first line alone
    monkeypatch.setattr(run_page, "EVERY", 0.0)
    again = replace(config, output=config.output.with_name("again"))
    assert state_of(page_at(again, 3, monkeypatch)).startswith("Running when this was written: step 3 of 4")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyboardInterrupt(), "Interrupted, last logged step 2 of 4."),
        (DivergedError("20 steps"), "Diverged, last logged step 2 of 4."),
        (ZeroDivisionError("division"), "Stopped by ZeroDivisionError, last logged step 2 of 4."),
    ],
)
def test_a_run_that_ends_early(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, error: BaseException, says: str
) -> None:
    page = page_at(config, 3, monkeypatch, error)
    assert state_of(page) == says and (str(error) or "--resume goes on") in page


def test_previews_of_later_steps_wait_until_a_resumed_run_makes_them_anew(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_at(config, 3, monkeypatch, KeyboardInterrupt())
    (config.output / "previews" / "step-00000004.mp4").write_bytes(b"from before")
    Trainer(replace(config, resume=True))
    page = (config.output / PAGE).read_text()
    assert "Step 2: the truth above" in page and "step-00000004" not in page


def test_curves_leave_out_what_is_not_finite_and_long_ones_are_thinned() -> None:
    rows = [{"step": step, "mse": float(step), "grad_norm": float("nan")} for step in range(1000)]
    rows += [{"step": 1000, "validation/mse": 5.0}]
    (curve,) = curves(rows)
    assert [(name, last) for _, name, last in curve.legend] == [("training", "999"), ("held-out", "5")]
    assert [len(points) for _, points in curve.chart.lines] == [250, 1]
    assert thin([(0.0, 1.0), (1.0, 3.0), (2.0, 8.0)], most=2) == [(0.5, 2.0), (2.0, 8.0)]


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no chromium: not on PATH, nor named by CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.browser
@pytest.mark.fault("a training is killed", "its page says when it was last written, and later that nothing came since")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, browser: Any, width: int) -> None:
    """A page that a kill left says so once nobody has written it for long; a fresh one doesn't."""
    html = page_at(config, 3, monkeypatch)
    shown = config.output / "shown.html"
    opened = browser.new_page(viewport={"width": width, "height": 800})
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    shown.write_text(html)
    opened.goto(shown.as_uri())
    assert opened.locator("#stale").is_hidden()
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.wait_for_function("document.querySelector('video').readyState >= 2", timeout=60_000)
    shown.write_text(re.sub(r'datetime="20\d\d', 'datetime="2001', html))
    opened.goto(shown.as_uri())
    assert "may no longer go on" in opened.locator("#stale").inner_text()
    assert complaints == []
