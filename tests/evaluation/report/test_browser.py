"""The evaluation's page in a real browser: videos move together, cases change, values show, and it fits a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from contrastive_i2v.data.video import write_video
from contrastive_i2v.evaluation.report import build_page
from contrastive_i2v.evaluation.results import (
    Difference,
    Evaluated,
    EvaluatedClip,
    FormOverSeeds,
    Interval,
    LatentMap,
    Metric,
    Report,
    SeedNumber,
)

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium: not on PATH, nor named by CHROMIUM"),
]

CLIPS, FRAMES, FPS = 5, 6, 6.0
WAIT = 60_000
"""Milliseconds; a busy machine decodes slowly."""
MOVING = "video[src]:not(.still)"


def bar(position: int) -> torch.Tensor:
    """A bright bar that goes to the right, starting at `position`: uint8 `[F, 3, 32, 32]`."""
    video = torch.full((FRAMES, 3, 32, 32), 30, dtype=torch.uint8)
    for frame in range(FRAMES):
        video[frame, :, :, position + 4 * frame : position + 4 * frame + 4] = 220
    return video


def evaluated(name: str, errors: list[float]) -> Evaluated:
    trajectory = [[[float(clip), float(frame)] for frame in range(FRAMES)] for clip in range(CLIPS)]
    clips = [
        EvaluatedClip(name=f"clip{i}", caption=f"a bar, the {i}th", video=f"{name}/{i}.mp4", truth=f"truth/{i}.mp4")
        for i in range(CLIPS)
    ]
    error = Metric(
        name="error",
        title="Pixel error",
        group="Fidelity",
        better="lower",
        definition="mean squared error",
        estimate=Interval(value=0.3, low=0.2, high=0.4),
        per_clip=errors,
        per_frame=[0.0, 0.125, 0.25, 0.375, 0.5, 0.625],
    )
    maps = [LatentMap(method=kind, points=trajectory, truth=trajectory) for kind in ("PCA", "UMAP")]
    return Evaluated(name=name, kind="videos", provenance={}, metrics=[error], clips=clips, maps=maps)


def over_seeds(form: str, verdict: str) -> FormOverSeeds:
    gap = Interval(value=-0.01, low=-0.03, high=0.01)
    numbers = [
        SeedNumber(title=title, better="lower", values=[0.25, 0.3], truth=0.0, baseline=0.28, difference=gap)
        for title in ("A number with a long title", "Another")
    ]
    return FormOverSeeds(form=form, seeds=[0, 1], numbers=numbers, verdict=verdict)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("evaluation")
    for name in ("truth", "mine", "theirs"):
        for i in range(CLIPS):
            write_video(folder / name / f"{i}.mp4", bar(i), FPS)
    (folder / "theirs" / "1.mp4").unlink()
    (folder / "mine" / "4.mp4").write_bytes(b"not a video")
    methods = [evaluated("mine", [0.5, 0.1, 0.3, 0.2, 0.4]), evaluated("theirs", [0.1, 0.2, 0.6, 0.4, 0.5])]
    gap = Interval(value=-0.1, low=-0.2, high=0.1)
    report = Report(
        title="A very-long-title/without-a-place-to-break-it/" * 3,
        command="contrastive-i2v compare " + "--with=many_options/and_long_paths" * 5,
        created="2025-01-02T03:04:05Z",
        methods=methods,
        extractors={},
        provenance={"data": "a/long/path" * 20},
        differences=[Difference(metric="error", a="mine", b="theirs", estimate=gap, better="neither")],
        over_seeds=[over_seeds(name, verdict) for name, verdict in (("mine", ""), ("theirs", "not told apart"))],
        warnings=["few clips"],
    )
    page = folder / "report.html"
    page.write_text(build_page(report, folder), encoding="utf-8")
    return page.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The open page, paused; at the end nothing was complained of, and nothing asked for but the page."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    opened.set_default_timeout(WAIT)
    complaints: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else 0)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    yield opened
    opened.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("blob:", "data:"))] == [address]


def show_videos(page: Any) -> None:
    page.locator("#videos").scroll_into_view_if_needed()
    page.evaluate("document.getElementById('videos').scrollIntoView()")
    page.wait_for_function(
        f"[...document.querySelectorAll('{MOVING}')].length >= 4"
        f" && [...document.querySelectorAll('{MOVING}')].every((video) => video.readyState >= 2)"
    )


def test_play_moves_all_videos_and_the_scrubber_stops_them_at_one_frame(page: Any) -> None:
    show_videos(page)
    times = f"[...document.querySelectorAll('{MOVING}')].map((video) => video.currentTime)"
    begin = 0.5 / FPS
    page.wait_for_function(f"{times}.every((time) => Math.abs(time - {begin}) < 1e-3)")
    assert page.locator("#play").inner_text() == "Play"
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Pause"
    page.evaluate(
        f"window.moved = new Set(); window.watch = setInterval(() => {{"
        f" for (const video of document.querySelectorAll('{MOVING}'))"
        f" if (Math.abs(video.currentTime - {begin}) > 0.02) moved.add(video); }}, 20)"
    )
    page.wait_for_function(f"[...document.querySelectorAll('{MOVING}')].every((video) => moved.has(video))")
    page.locator("#frame").fill("4")
    assert page.locator("#play").inner_text() == "Play"
    page.wait_for_function(f"{times}.every((time) => Math.abs(time - {4.5 / FPS}) < 1e-3)")
    page.locator("#forward").click()
    page.wait_for_function(f"{times}.every((time) => Math.abs(time - {5.5 / FPS}) < 1e-3)")
    assert page.locator("#shown").inner_text() == "5 / 5"
    stills = page.evaluate("[...document.querySelectorAll('video.still[src]')].map((video) => video.currentTime)")
    assert stills and all(abs(time - begin) < 1e-3 for time in stills)


def test_the_metric_chooses_the_cases(page: Any) -> None:
    shown = "[...document.querySelectorAll('#{} .strip')].map((strip) => Number(strip.dataset.clip))"
    assert page.evaluate(shown.format("all")) == [0, 1, 2, 3, 4]
    page.locator("#metric").select_option(label="Pixel error")
    assert page.locator("#by option:checked").inner_text() == "mine against theirs"
    assert page.evaluate(shown.format("upper")) == [2, 3, 1]  # theirs - mine: 0.3, 0.2, 0.1, 0.1, -0.4
    assert page.evaluate(shown.format("lower")) == [0, 4]
    assert "mine is most ahead of theirs" in page.locator("#upper-title").inner_text()
    page.locator("#by").select_option(label="theirs")
    assert page.evaluate(shown.format("upper")) == [0, 1, 3]
    assert page.evaluate(shown.format("lower")) == [2, 4]
    assert page.locator("#upper .strip >> nth=0").locator("[data-method=theirs] .score").inner_text() == "0.10"
    page.locator("#metric").select_option("")
    assert page.evaluate(shown.format("all")) == [0, 1, 2, 3, 4]
    assert not page.locator("#upper-title").is_visible()


def test_missing_and_broken_videos_are_said_in_their_place(page: Any) -> None:
    show_videos(page)
    assert page.locator(".strip >> nth=1").locator("[data-method=theirs]").inner_text().startswith("missing file: ")
    page.locator(".strip >> nth=4").scroll_into_view_if_needed()
    page.locator(".strip >> nth=4").locator("text=can't be played").wait_for()


def test_definitions_and_values_are_within_reach_of_the_keyboard(page: Any) -> None:
    definition = page.locator(".definition").first
    assert not definition.is_visible()
    page.locator(".define").first.focus()
    page.keyboard.press("Enter")
    assert definition.is_visible() and "mean squared error" in definition.inner_text()
    chart = page.locator("svg[data-chart]").first
    chart.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    tip = page.locator("#tip").inner_text().split()
    assert tip[:2] == ["frame", "3"] and tip.count("0.375") == 2
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def test_maps_toggle_and_a_chosen_clip_stands_out(page: Any) -> None:
    assert [page.locator(f"[data-map='{i}']").is_visible() for i in (0, 1)] == [True, False]
    page.locator("input[name=map] >> nth=0").focus()
    page.keyboard.press("ArrowRight")
    assert [page.locator(f"[data-map='{i}']").is_visible() for i in (0, 1)] == [False, True]
    page.locator("#map-clip").select_option("3")
    chosen = page.evaluate("[...document.querySelectorAll('.trace.on')].map((trace) => trace.dataset.clip)")
    assert chosen == ["3"] * 8  # two maps of two methods, made and true


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#provenance summary").click()
    page.locator(".define").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    widest = "Math.max(...[...document.querySelectorAll('main *')].map((one) => one.getBoundingClientRect().right))"
    assert page.evaluate(widest) <= 390
