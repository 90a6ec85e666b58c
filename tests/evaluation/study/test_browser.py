"""Five people in a real browser: mouse, keyboard and phone, one who comes back and one who corrects themselves."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contrastive_i2v.evaluation.study.questions import QUESTIONS
from contrastive_i2v.evaluation.study.server import StudyServer
from contrastive_i2v.evaluation.study.session import Session
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
        # Chromium tells a page that is open already of its first route too late for a request that comes at once;
        # a page that opens under one has all its requests looked at, whatever `spoil` adds and takes away.
        self.context.route("**/nothing", lambda route: route.continue_())
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


UNREACHED = "The study can’t be reached. Nothing is lost; try again in a moment."
UNKNOWN = "The study didn’t answer as it should. Nothing is lost; try again in a moment."
ANSWERS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "a connection that is cut": (None, UNREACHED),
    "400": ({"status": 400, "json": {"error": "side is 'up'; expected left or right."}}, "side is 'up'; expected left"),
    "403": ({"status": 403, "json": {"error": "Another page may not vote here."}}, "Another page may not vote here."),
    "404": ({"status": 404, "json": {"error": "No pair 9; the study has 4."}}, "No pair 9; the study has 4."),
    "413": ({"status": 413, "json": {"error": "Expected at most 4096 bytes."}}, "Expected at most 4096 bytes."),
    "a proxy's page": ({"status": 502, "body": "<h1>Bad gateway</h1>", "content_type": "text/html"}, UNKNOWN),
    "half an answer": ({"status": 200, "body": '{"name": "Ra', "content_type": "application/json"}, UNKNOWN),
    "an error without words": ({"status": 500, "json": {}}, UNKNOWN),
}


def spoil(page: Any, path: str, answer: dict[str, Any] | None) -> None:
    """Let requests for a path fail like this."""
    page.route(f"**{path}", lambda route: route.abort() if answer is None else route.fulfill(**answer))


def choose(page: Any) -> None:
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("1")


def assert_kept(page: Any) -> None:
    """What was chosen is still marked."""
    assert page.is_checked(".choice input[value=left]") and page.is_checked(".reason input >> nth=0")


@pytest.mark.fault(
    "a rater's browser gets any error for an answer: a limit, a refusal, a proxy's page, no connection",
    "one message on the page, the answer still marked; Next sends it again",
)
def test_an_answer_that_is_not_taken_is_kept_and_sent_again(
    chromium: Any, store: Store, serve: Callable[[Store], int]
) -> None:
    person = Person(chromium, f"http://127.0.0.1:{serve(store)}", 1, {}, plays=False)
    page = person.page
    person.join()
    choose(page)
    for answer, said in ANSWERS.values():
        spoil(page, "/vote", answer)
        page.keyboard.press("Enter")
        page.wait_for_selector(f'#rate #problem:has-text("{said}")')
        assert page.locator(".problem:visible").count() == 1
        assert_kept(page)
        page.unroute_all()
    assert store.votes() == []
    page.keyboard.press("Enter")
    page.wait_for_selector("#where:has-text('Faithfulness')")
    assert [vote.question for vote in store.votes()] == ["quality"]
    assert page.inner_text("#problem") == ""

    choose(page)  # the answer is taken, and the next pair can't be had
    spoil(page, "/pair/1", ANSWERS["404"][0])
    page.keyboard.press("Enter")
    page.wait_for_selector('#problem:has-text("No pair 9")')
    assert_kept(page)
    assert len(store.votes()) == 2
    page.unroute_all()
    page.keyboard.press("Enter")
    page.wait_for_selector("#where:has-text('2 of 4')")
    assert len(store.votes()) == 2
    assert not [problem for problem in person.problems if "Failed to load resource" not in problem]
    person.context.close()


@pytest.mark.parametrize("case", ANSWERS)
def test_an_error_at_the_start_is_one_message(
    chromium: Any, store: Store, serve: Callable[[Store], int], case: str
) -> None:
    answer, said = ANSWERS[case]
    person = Person(chromium, f"http://127.0.0.1:{serve(store)}", 1, {}, plays=False)
    page = person.page
    message = f'#join .problem:has-text("{said}")'
    spoil(page, "/join", answer)
    page.fill("#name", "Ana")
    page.keyboard.press("Enter")
    page.wait_for_selector(message)
    assert page.input_value("#name") == "Ana"
    page.unroute_all()
    page.keyboard.press("Enter")
    person.ready()
    for path in ("/welcome", "/progress"):
        spoil(page, path, answer)
        page.reload()
        page.wait_for_selector(message)
        page.unroute_all()
    page.reload()
    person.ready()
    assert page.inner_text("#rater") == "Ana"
    assert not [problem for problem in person.problems if "Failed to load resource" not in problem]
    person.context.close()


def test_a_rater_who_is_not_known_any_more_enters_their_name_and_keeps_the_answer(
    chromium: Any, store: Store, serve: Callable[[Store], int]
) -> None:
    person = Person(chromium, f"http://127.0.0.1:{serve(store)}", 1, {}, plays=False)
    page = person.page
    person.join()
    choose(page)
    spoil(page, "/vote", {"status": 401, "json": {"error": "Please enter your name."}})
    page.keyboard.press("Enter")
    page.wait_for_selector('#join .problem:has-text("Please enter your name.")')
    page.unroute_all()
    person.join("rater 1")
    assert_kept(page)
    page.click("#leave")
    person.join("Another")
    assert page.locator(":checked").count() == 0
    person.context.close()


@pytest.mark.parametrize("late", ["/pair/0", "/video/*"])
def test_who_leaves_while_a_pair_loads_lets_the_next_person_in(
    chromium: Any, store: Store, serve: Callable[[Store], int], late: str
) -> None:
    person = Person(chromium, f"http://127.0.0.1:{serve(store)}", 1, {}, plays=False)
    page = person.page
    held: list[Any] = []
    names = ["Ana"]
    page.route(f"**{late}", lambda route: route.fallback() if "Ben" in names else held.append(route))
    page.fill("#name", "Ana")
    page.keyboard.press("Enter")
    page.wait_for_selector("#next[aria-busy]", state="attached")
    page.wait_for_selector("#rate:visible" if late == "/video/*" else "#start:visible")
    page.evaluate("document.querySelector('#leave').click()")
    page.wait_for_selector("#start:visible")
    names.append("Ben")
    person.join("Ben")
    for route in held:  # what Ana waited for comes when Ben is there
        route.continue_()
    choose(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("#where:has-text('Faithfulness')")
    assert page.inner_text("#rater") == "Ben"
    assert [vote.rater for vote in store.votes()] == ["Ben"] and person.problems == []
    person.context.close()


@pytest.mark.fault("somebody enters a known rater's name in a study beyond this machine", "they are told it is taken")
def test_a_taken_name_and_a_full_study_are_said(chromium: Any, pairs: list[Any], design: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "small.sqlite", replace(design, raters=2))
    server = StudyServer(Session(store, pairs), ("127.0.0.1", 0))
    server.trusts_names = False  # as beyond loopback
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    people = [Person(chromium, f"http://127.0.0.1:{server.server_port}", 1, {}, plays=False) for _ in range(3)]
    first, second, third = (person.page for person in people)
    people[0].join("Ana")
    choose(first)
    first.keyboard.press("Enter")
    first.wait_for_selector("#where:has-text('Faithfulness')")
    for page, name, said in (
        (second, " ANA", "This name is taken. If it is yours, go on in the browser you began in"),
        (second, "Ben", ""),
        (third, "Cy", "This study already has its 2 raters."),
    ):
        page.fill("#name", name)
        page.keyboard.press("Enter")
        page.wait_for_selector(f'#join .problem:has-text("{said}")' if said else "#rate:visible")
    first.reload()  # its own key goes on
    people[0].ready()
    assert people[0].where() == "1 of 4 · Faithfulness" and len(store.votes()) == 1
    for person in people:
        person.context.close()
    server.shutdown()
    server.server_close()
    store.close()


def test_a_video_that_cannot_be_loaded_is_not_judged(
    chromium: Any, store: Store, serve: Callable[[Store], int]
) -> None:
    person = Person(chromium, f"http://127.0.0.1:{serve(store)}", 1, {}, plays=False)
    page = person.page
    spoil(page, "/video/*", {"status": 404, "json": {"error": "This video is gone."}})
    person.join()
    said = '#problem:has-text("A video can’t be played here. Please tell whoever runs the study.")'
    page.wait_for_selector(said)
    choose(page)
    page.keyboard.press("Enter")
    page.wait_for_selector(said)
    assert store.votes() == []
    page.unroute_all()
    page.keyboard.press("Enter")  # loads them again
    page.wait_for_selector("#videos:not(.loading)")
    choose(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("#where:has-text('Faithfulness')")
    assert len(store.votes()) == 1
    person.context.close()


@pytest.mark.fault(
    "a study's server is stopped while somebody rates", "the page says so; started again it takes the answer"
)
def test_a_server_that_comes_back_takes_the_answer(chromium: Any, store: Store, pairs: list[Any]) -> None:
    def start(port: int) -> StudyServer:
        server = StudyServer(Session(store, pairs), ("127.0.0.1", port))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    server = start(0)
    person = Person(chromium, f"http://127.0.0.1:{server.server_port}", 1, {}, plays=False)
    page = person.page
    person.join()
    choose(page)
    server.shutdown()
    for connection in list(server._connections):
        connection.shutdown(socket.SHUT_RDWR)
    server.server_close()
    page.keyboard.press("Enter")
    page.wait_for_selector(f'#problem:has-text("{UNREACHED}")')
    assert_kept(page)
    server = start(server.server_port)
    page.keyboard.press("Enter")
    page.wait_for_selector("#where:has-text('Faithfulness')")
    assert len(store.votes()) == 1
    person.context.close()
    server.shutdown()
    server.server_close()


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
