"""The page holds all it shows, fetches nothing, and says no more than the numbers do."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import torch

from contrastive_i2v.evaluation.compare import Measurement
from contrastive_i2v.evaluation.report import Chart, HeldOutRow, Method, Report, Series, build_page

HOSTILE = '<script>alert("x")</script> & "quotes"'


def method(label: str, *errors: float, motion: float = 0.5) -> Method:
    tensor = torch.tensor(errors, dtype=torch.float64)[:, None, None].expand(-1, 3, 4)
    return Method(label=label, style="base", measured=Measurement(tensor, tuple((motion, 0.1) for _ in errors)))


def report(*methods: Method) -> Report:
    return Report(
        title="title",
        summary="summary",
        rows=[HeldOutRow(caption=HOSTILE, videos={"truth": b"\x00true", "contrastive": b"\xffmade"})],
        videos_note="note",
        fps=5.0,
        methods=methods,
        verdict=["a sentence from the numbers"],
        charts=[
            Chart(title="loss", series=[Series(name="a", style="x", points=[(0, 1), (1, 2)])], x_label="step"),
            Chart(title="empty chart", series=[Series(name="a", style="x", points=[])], x_label="step"),
        ],
        config={"model": HOSTILE},
        commands={"sample": f"tool --prompt '{HOSTILE}'"},
    )


class Page(HTMLParser):
    """Collects tags, their attributes and the text, and checks that tags close in order."""

    VOID = {"meta", "link", "br", "input", "path"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_captions_paths_and_commands_are_escaped() -> None:
    text = build_page(report(method("a", 0.1)))
    page = Page(text)
    assert "<script>alert" not in text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.texts.count(HOSTILE) == 2  # the caption and the config's value
    assert "".join(page.texts).count(HOSTILE) == 3  # and the command, whose options are marked up


def test_videos_are_inside_and_play_together_on_phones() -> None:
    videos = [attributes for tag, attributes in Page(build_page(report(method("a", 0.1)))).tags if tag == "video"]
    contents = [base64.b64decode((v["src"] or "").removeprefix("data:video/mp4;base64,")) for v in videos]
    assert contents == [b"\x00true", b"\xffmade"]
    for video in videos:
        assert {"autoplay", "loop", "muted", "playsinline"} <= video.keys()


def test_nothing_is_fetched() -> None:
    text = build_page(report(method("a", 0.1)))
    for _, attributes in Page(text).tags:
        for name in ("src", "href", "poster", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "@import" not in text
    assert "url(" not in text
    assert "http" not in text


def test_numbers_and_their_spread_are_in_the_table() -> None:
    text = build_page(report(method("mine", 0.125, 0.375)))
    assert "0.2500" in text
    assert re.search(r"±\W+0\.1768|±&#8202;0\.1768", text)  # stdev of the two seeds


def test_bold_needs_several_seeds_and_a_clear_gap() -> None:
    def bold(*methods: Method) -> list[str]:
        return re.findall(r"<b>([\d.]+)</b>", build_page(report(*methods)))

    assert bold(method("a", 0.1), method("b", 0.9)) == []
    assert bold(method("a", 0.1, 0.5, 0.3), method("b", 0.4, 0.2, 0.5)) == []
    clear = method("a", 0.10, 0.11, 0.12), method("b", 0.20, 0.211, 0.219)
    assert bold(*clear) == ["0.1100"] * 4  # frames 1, 2, 3 and the mean; the motion is equal
    assert bold(method("a", 0.1, 0.2, motion=1.5), method("b", 0.2, 0.1, motion=0.9)) == ["0.90"]  # nearer to 1


def test_a_single_clip_has_no_spread_to_show() -> None:
    one = method("a", 0.1)
    errors = one.measured.errors[:, :1]
    text = build_page(report(replace(one, measured=Measurement(errors, ((0.5, float("nan")),)))))
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)


def test_a_chart_without_points_is_left_out() -> None:
    text = build_page(report(method("a", 0.1)))
    assert "<h3>loss</h3>" in text
    assert "empty chart" not in text
