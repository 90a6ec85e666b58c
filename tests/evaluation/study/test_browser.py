"""Five people in a real browser: mouse, keyboard and phone, one who comes back and one who corrects themselves."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contrastive_i2v.evaluation.study.questions import QUESTIONS
from contrastive_i2v.evaluation.study.statistics import analyse
from contrastive_i2v.evaluation.study.store import Store

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the path, or $CHROMIUM"),
]

# Who chooses A, by pair; all others choose B.
FOR_A = {
    "quality": ({0, 1, 2, 3, 4}, {0, 1, 2, 3}, {0, 1}, set()),
    "faithfulness": ({0, 1, 2}, {0, 1, 2, 3, 4}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}),
}
DESKTOP: dict[str, Any] = {"viewport": {"width": 1100, "height": 760}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        plays = page.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.42E01E\"')")
        page.close()
        if not plays:
            pytest.skip("this chromium was built without H.264")
        yield browser
        browser.close()


class Person:
    """A rater at a browser of their own, who tells videos apart by their bytes."""

    def __init__(
        self, chromium: Any, url: str, number: int, contents: dict[str, tuple[str, int]], *, plays: bool = True
    ) -> None:
        self.chromium, self.url, self.number, self.contents = chromium, url, number, contents
        self.name = f"Rater {number}"
        self.device = PHONE if number == 2 else DESKTOP
        if not plays:  # who wants less motion presses Play; saves the CPU five players
            self.device = {**self.device, "reduced_motion": "reduce"}
        self.received: list[str] = []
        self.problems: list[str] = []
        self.open()

    def open(self) -> None:
        """A fresh browser, which remembers nothing."""
        self.context = self.chromium.new_context(**self.device)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("response", self._receive)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.goto(self.url)

    def _receive(self, response: Any) -> None:
        self.received.append(f"{response.url}\n{response.headers}")

    def join(self, name: str | None = None) -> None:
        self.page.fill("#name", name or self.name)
        self.page.keyboard.press("Enter")
        self.ready()

    def ready(self) -> None:
        """Wait until both videos are on show, or all is done."""
        self.page.wait_for_selector("#done:visible, #rate:visible #next:not([aria-busy])")

    def sources(self) -> list[str]:
        """Where the left and the right video come from."""
        found: list[str] = self.page.evaluate("videos.map((video) => video.getAttribute('src'))")
        return found

    def shown(self) -> list[tuple[str, int]]:
        """(method, pair) of the left and of the right video."""
        for source in self.sources():
            if source not in self.contents:
                body = self.context.request.get(self.url + source).body()
                self.contents[source] = self.contents[hashlib.sha256(body).hexdigest()]
        return [self.contents[source] for source in self.sources()]

    def where(self) -> str:
        text: str = self.page.evaluate("document.querySelector('#where').textContent")
        return text

    def answer(self, *, wrong: bool = False) -> None:
        """Choose by the table, give reasons, go on."""
        left, right = self.shown()
        assert left[1] == right[1] and {left[0], right[0]} == {"a", "b"}
        question = "quality" if "Quality" in self.where() else "faithfulness"
        wanted = "a" if self.number in FOR_A[question][left[1]] else "b"
        side = "left" if (left[0] == wanted) != wrong else "right"
        reasons = {"quality": [self.number], "faithfulness": [0] if self.number % 2 else [0, 1]}[question]
        ticked = self.page.evaluate("[...document.querySelectorAll('.reason input')].map((input) => input.checked)")
        self.say(side, [i for i in reasons if not ticked[i]])

    def say(self, side: str, reasons: list[int]) -> None:
        if self.number % 2:
            self.page.keyboard.press("ArrowLeft" if side == "left" else "ArrowRight")
            for reason in reasons:
                self.page.keyboard.press(str(reason + 1))
            before = self.where()
            self.page.keyboard.press("Enter")
        else:
            self.page.locator(".choice").nth(0 if side == "left" else 1).click()
            for reason in reasons:
                self.page.locator(".reason").nth(reason).click()
            before = self.where()
            self.page.click("#next")
        self._wait_for_another(before)

    def back(self) -> None:
        before = self.where()
        if self.number % 2:
            self.page.keyboard.press("Backspace")
        else:
            self.page.click("#back")
        self._wait_for_another(before)

    def _wait_for_another(self, before: str) -> None:
        deadline = time.monotonic() + 20
        while self.page.evaluate("document.querySelector('#done').hidden") and self.where() == before:
            assert time.monotonic() < deadline, f"{self.name} is stuck at {before}: {self.page.inner_text('#problem')}"
            time.sleep(0.02)
        self.ready()


def test_five_raters(
    chromium: Any, store: Store, serve: Callable[[Store], int], folders: tuple[Path, Path], pairs: list[Any]
) -> None:
    url = f"http://127.0.0.1:{serve(store)}"
    contents = {
        hashlib.sha256((folder / f"{pair.name}.mp4").read_bytes()).hexdigest(): (method, i)
        for method, folder in zip("ab", folders, strict=True)
        for i, pair in enumerate(pairs)
    }
    people = [Person(chromium, url, number, contents, plays=False) for number in range(5)]
    sources: list[str] = []
    for person in people:
        person.join()
        assert person.where() == "1 of 4 · Quality"
        assert person.page.is_disabled("#back") and person.page.inner_text("#caption") == ""

    for turn in range(8):  # all at the same time
        for person in people:
            assert person.where() == f"{turn // 2 + 1} of 4 · {('Quality', 'Faithfulness')[turn % 2]}"
            if turn % 2:  # the text stays hidden until it is asked about
                assert person.page.inner_text("#caption") == pairs[person.shown()[0][1]].caption
            sources += person.sources()
            if person.number in (0, 1) and turn in (0, 7):
                person.answer(wrong=True)
                if turn == 7:
                    assert person.page.inner_text("#thanks") == f"Thank you, {person.name}!"
                    person.page.click("#again")
                    person.ready()
                else:
                    person.back()
                assert person.page.locator(".choice :checked").count() == 1
            person.answer()
            if person.number == 3 and turn == 2:  # closes the browser, and comes back on another
                person.context.close()
                person.open()
                person.join("rater 3")
            if person.number == 4 and turn == 4:
                person.page.reload()
                person.ready()
    for person in people:
        assert person.page.inner_text("#thanks") == f"Thank you, {person.name}!"
        assert person.problems == []

    quality, faithfulness = analyse(store.design, store.votes())
    assert (quality.a_wins, quality.ties, quality.b_wins, quality.unfinished) == (2, 0, 2, 0)
    assert quality.agreement == {"complete": 2, "partial": 1, "split": 1}
    assert quality.win_rate_a.value == 0.5 and quality.vote_share_a.value == pytest.approx(11 / 20)
    assert quality.kappa == pytest.approx(49 / 99)  # P = (1 + .6 + .4 + 1) / 4, P_e = (11^2 + 9^2) / 20^2
    assert quality.preferred is None
    # rater i always gives reason i
    assert list(quality.reasons.values()) == [
        {"a": 3, "b": 1},
        {"a": 3, "b": 1},
        {"a": 2, "b": 2},
        {"a": 2, "b": 2},
        {"a": 1, "b": 3},
    ]
    assert (faithfulness.a_wins, faithfulness.ties, faithfulness.b_wins, faithfulness.unfinished) == (4, 0, 0, 0)
    assert faithfulness.agreement == {"complete": 2, "partial": 1, "split": 1}
    assert faithfulness.kappa == pytest.approx(1 / 51)  # P = 3/4, P_e = (17^2 + 3^2) / 20^2
    assert (faithfulness.wilson_a.low, faithfulness.wilson_a.high) == pytest.approx((0.5101, 1), abs=5e-5)
    assert faithfulness.preferred == "a"
    assert faithfulness.reasons == {"spatial_alignment": {"a": 17, "b": 3}, "temporal_alignment": {"a": 10, "b": 2}}
    assert len(store.votes(history=True)) == 4  # two people, two corrections
    assert {len(vote.reasons) for vote in store.votes() if vote.question == "quality"} == {1}

    # Nothing that a browser got tells the methods apart.
    assert all(source.startswith("/video/") for source in sources)
    for person in people:
        received = [*person.received, person.page.content(), str(person.context.storage_state())]
        paths = {one.split("\n")[0] for one in person.received}
        received += [person.context.request.get(path).body().decode("latin-1") for path in paths if "/vote" not in path]
        assert len(paths) > 12
        for one in received:
            assert "zebra" not in one.lower() and "quagga" not in one.lower()
        person.context.close()


def test_the_videos_play_together_and_loop(chromium: Any, store: Store, serve: Callable[[Store], int]) -> None:
    person = Person(chromium, f"http://127.0.0.1:{serve(store)}", 1, {})
    person.join()
    times: list[list[float]] = []
    deadline = time.monotonic() + 20
    rounds = 0
    while rounds < 2:
        assert time.monotonic() < deadline, times[-20:]
        now = person.page.evaluate("videos.map((video) => video.currentTime)")
        rounds += bool(times) and now[0] < times[-1][0] - 0.3
        times.append(now)
        time.sleep(0.02)
    assert max(max(both) for both in times) > 0.9  # a second long, and seen to its end
    apart = sorted(abs(left - right) for left, right in times)
    assert apart[int(0.9 * len(apart))] <= 0.1  # one of its frames
    person.page.keyboard.press("Space")
    person.page.wait_for_selector("#play:has-text('Play')")
    assert person.page.evaluate("videos.every((video) => video.paused)")
    person.page.fill("#seek", "500")
    positions = person.page.evaluate("videos.map((video) => video.currentTime)")
    assert positions == pytest.approx([0.5, 0.5], abs=0.01)
    person.context.close()


def test_what_is_missing_is_asked_for(chromium: Any, store: Store, serve: Callable[[Store], int]) -> None:
    person = Person(chromium, f"http://127.0.0.1:{serve(store)}", 1, {})
    page = person.page
    page.fill("#name", "<script>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#join .problem:has-text('Please enter a name')")
    person.problems.clear()  # the console repeats the refusal
    person.join()
    page.keyboard.press("Enter")
    page.wait_for_selector("#problem:has-text('Choose a video first.')")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#problem:has-text('Choose at least one reason.')")
    assert store.votes() == [] and person.problems == []
    page.click("#leave")
    page.wait_for_selector("#start:visible")
    person.context.close()


def test_everything_fits_a_phone_and_a_desk(chromium: Any, store: Store, serve: Callable[[Store], int]) -> None:
    person = Person(chromium, f"http://127.0.0.1:{serve(store)}", 2, {})
    person.join()
    page = person.page
    upper, lower = (page.locator("video").nth(i).bounding_box() for i in (0, 1))
    assert lower["y"] >= upper["y"] + upper["height"] and upper["width"] > 300  # 72x48 is wide
    assert [page.locator(".side").nth(i).inner_text() for i in (0, 1)] == ["Upper", "Lower"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    page.set_viewport_size(DESKTOP["viewport"])
    page.wait_for_selector("#videos:not(.stacked)")
    left, right = (page.locator("video").nth(i).bounding_box() for i in (0, 1))
    assert right["x"] >= left["x"] + left["width"] and left["y"] == right["y"]
    for box in (upper, lower, left, right):
        assert math.isclose(box["width"] / box["height"], 1.5, rel_tol=0.02)
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    assert page.get_by_role("radio").count() == 2
    assert page.get_by_role("checkbox").count() == len(QUESTIONS["quality"].reasons)
    assert page.get_by_role("checkbox", name="Sharpness").count() == 1
    person.context.close()
