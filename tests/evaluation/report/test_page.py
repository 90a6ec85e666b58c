"""The evaluation's page: what it says, that it says no more than the intervals do, and that it holds all it shows."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from contrastive_i2v.evaluation.report.page import build_page, embedded_json, method_styles
from contrastive_i2v.evaluation.report.rows import (
    Row,
    cases_of,
    clear_best,
    clip_order,
    decimals,
    interval,
    metric_rows,
    number,
    per_clip,
)
from contrastive_i2v.evaluation.results import (
    Better,
    Difference,
    Evaluated,
    EvaluatedClip,
    Extractor,
    Interval,
    LatentMap,
    Metric,
    Report,
)

HOSTILE = """</script><script>alert("x")</script><!-- & 'quotes' \u2028"""
CLIPS, FRAMES = 4, 6


def metric(name: str, value: float, better: Better = "higher", **fields: object) -> Metric:
    defaults = {"title": name.upper(), "group": "Fidelity", "definition": f"what {name} is"}
    estimate = Interval(value=value, low=value - 0.5, high=value + 0.5)
    return Metric(name=name, better=better, **{"estimate": estimate, **defaults, **fields})  # type: ignore[arg-type]


def method(name: str, *metrics: Metric, kind: str = "checkpoint", clips: int = CLIPS) -> Evaluated:
    made = [
        EvaluatedClip(name=f"clip{i}", caption=f"caption {i}", video=f"{name}/{i}.mp4", truth=f"truth/{i}.mp4")
        for i in range(clips)
    ]
    return Evaluated(name=name, kind=kind, provenance={"seed": "0"}, metrics=list(metrics), clips=made)  # type: ignore[arg-type]


def difference(name: str, a: str, b: str, value: float, half: float = math.nan) -> Difference:
    """Of a metric where higher is better."""
    better = "" if math.isnan(half) else "neither" if abs(value) <= half else "a" if value > 0 else "b"
    estimate = Interval(value=value, low=value - half, high=value + half)
    return Difference(metric=name, a=a, b=b, estimate=estimate, better=better)  # type: ignore[arg-type]


def report(*methods: Evaluated, differences: tuple[Difference, ...] = (), **fields: object) -> Report:
    defaults = {"title": "Mine against theirs", "command": "contrastive-i2v compare", "created": "2025-01-02T03:04:05Z"}
    rest = {"extractors": {}, "provenance": {}, "differences": list(differences), **defaults, **fields}
    return Report(methods=list(methods), **rest)  # type: ignore[arg-type]


def verdict_of(whole: Report) -> str:
    """The page's verdict as text."""
    page = build_page(whole, Path("."))
    (said,) = re.findall(r'<div class="verdict">(.*?)</div>', page, re.S)
    return re.sub(r"<[^>]+>", "", said)


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether tags close in order."""

    VOID = {"meta", "link", "br", "input", "path", "circle", "line"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
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
        (self.scripts if self.open and self.open[-1] == "script" else self.texts).append(data)

    def having(self, attribute: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if attribute in attributes]


# Numbers


def test_decimals_show_two_digits_of_the_typical_interval() -> None:
    def widths(*halves: float) -> int:
        return decimals([Interval(value=100.0, low=100 - half, high=100 + half) for half in halves])

    assert widths(23.0) == 0
    assert widths(2.3) == 1
    assert widths(0.0023) == 4
    assert widths(0.0023, 0.0, 0.0031) == 4  # a constant has no width to go by
    assert decimals([Interval(value=12.345)]) == 2
    assert decimals([Interval(value=math.nan)]) == 1


def test_numbers_have_a_true_minus_and_no_negative_zero() -> None:
    assert number(-1.25, 2) == "−1.25"
    assert number(-0.0001, 2) == "0.00"
    assert number(0.5, 1, sign=True) == "+0.5"
    assert number(1.5e-9, 10) == "1.5e−09"
    assert number(math.nan, 2) == "–"
    assert interval(Interval(value=1.0, low=-0.5, high=2.0), 1, sign=True) == "−0.5 to +2.0"
    assert interval(Interval(value=1.0), 1) == ""


# What may be said


def test_bold_needs_a_clear_gap_to_every_other_method() -> None:
    methods = [method(name, metric("m", value)) for name, value in (("a", 9.0), ("b", 5.0), ("c", 1.0))]
    ahead = [difference("m", "a", "b", 4, 1), difference("m", "c", "a", -8, 1), difference("m", "b", "c", 4, 1)]
    (row,) = metric_rows(report(*methods))
    assert clear_best(row, ["a", "b", "c"], ahead) == "a"
    assert clear_best(row, ["a", "b", "c"], ahead[:1]) is None  # nothing known against c
    assert clear_best(row, ["a", "b", "c"], [difference("m", "a", "b", 4, 5), *ahead[1:]]) is None
    describes = replace(row, about=replace(row.about, better="none"))
    assert clear_best(describes, ["a", "b", "c"], ahead) is None
    whole = build_page(report(*methods, differences=tuple(ahead)), Path("."))
    table = whole[whole.index("<table>") : whole.index("</table>")]
    assert re.findall(r"<b>([^<]+)</b>", table) == ["9.00"]
    assert "<b>" not in re.search(r"<table>.*</table>", build_page(report(*methods), Path(".")), re.S)[0]  # type: ignore[index]


def test_the_verdict_says_what_the_differences_say() -> None:
    names = ("up", "down", "same", "unknown")
    first, second = (method(name, *(metric(one, 1.0) for one in names)) for name in ("A", "B"))
    found = (
        difference("up", "A", "B", 2.0, 0.5),
        difference("down", "A", "B", -2.0, 0.5),
        difference("same", "A", "B", 0.1, 0.5),
        difference("unknown", "A", "B", 3.0),
    )
    whole = report(first, second, differences=found)
    text = verdict_of(whole)
    assert "A is better than B on UP (+2.00; +1.50 to +2.50)." in text
    assert "B is better on DOWN (+2.00; +1.50 to +2.50)." in text
    assert "On SAME the interval holds 0." in text
    assert "Of UNKNOWN nothing can be said" in text
    assert "seeds" in text

    only_same = report(first, second, differences=found[2:3])
    text = verdict_of(only_same)
    assert "better" not in text
    assert "No difference between A and B shows" in text


def test_the_verdict_without_differences_claims_nothing() -> None:
    alone, other = method("A", metric("m", 1.0)), method("B", metric("m", 9.0))
    for whole in (report(alone), report(alone, other)):
        text = verdict_of(whole)
        assert not re.search(r"\b[AB] is better", text)
    assert "evaluated alone" in verdict_of(report(alone))
    assert "can't say" in verdict_of(report(alone, other)).replace("&#39;", "'")


def test_a_metric_that_only_describes_has_no_better_side() -> None:
    first, second = (method(name, metric("m", 1.0, "none")) for name in "AB")
    whole = report(first, second, differences=(difference("m", "A", "B", 3.0, 1.0),))
    assert "is better" not in verdict_of(whole)


# Rows, clips and cases


def test_rows_keep_groups_together_and_methods_may_lack_a_metric() -> None:
    first = method("A", metric("x", 1.0, group="One"), metric("y", 1.0, group="Two"))
    second = method("B", metric("z", 2.0, group="One", truth=7.0), metric("y", 2.0, group="Two"))
    rows = metric_rows(report(first, second))
    assert [row.about.name for row in rows] == ["x", "z", "y"]
    assert list(rows[1].methods) == ["B"] and rows[1].truth == 7.0
    cells = Page(build_page(report(first, second), Path("."))).texts
    assert cells.count("–") >= 2  # x of B, z of A


def test_per_clip_values_follow_the_clips_names() -> None:
    first = method("A", metric("m", 1.0, per_clip=[1.0, 2.0, 3.0]), clips=3)
    second = method("B", metric("m", 1.0, per_clip=[30.0, 10.0]), clips=3)
    second = replace(second, clips=[second.clips[2], second.clips[0]])
    whole = report(first, second)
    values = per_clip(whole, metric_rows(whole)[0])
    assert [clip.name for clip in clip_order(whole)] == ["clip0", "clip1", "clip2"]
    assert values["A"] == [1.0, 2.0, 3.0]
    assert values["B"][0] == 10.0 and math.isnan(values["B"][1]) and values["B"][2] == 30.0


@pytest.mark.parametrize(
    ("better", "upper", "lower"),
    [("higher", [4, 2], [3, 0]), ("lower", [3, 0], [4, 2]), ("truth", [0, 1], [4, 2]), ("none", [4, 2], [3, 0])],
)
def test_best_and_worst_cases(better: Better, upper: list[int], lower: list[int]) -> None:
    values = [2.0, 2.5, 5.0, 0.5, 9.0, math.nan]
    about = metric("m", 1.0, better)
    found = cases_of(Row(about=about, methods={"A": about}, truth=2.2, places=1), values)
    assert (found.upper[:2], found.lower[:2]) == (upper, lower)
    assert not set(found.upper) & set(found.lower)


def test_cases_of_a_pair_are_where_one_is_ahead() -> None:
    about = metric("m", 1.0, "lower")
    row = Row(about=about, methods={"A": about}, truth=math.nan, places=1)
    found = cases_of(row, [1.0, 5.0, 3.0], [4.0, 1.0, 3.0])  # A's error is 3 less, 4 more, equal
    assert found.upper == [0, 2] and found.lower == [1]


# The page


def hostile_report() -> Report:
    bad = metric(
        "m", 1.0, title=HOSTILE, group=HOSTILE, definition=HOSTILE, warning=HOSTILE, unit=HOSTILE, extractor="e"
    )
    bad = replace(
        bad, per_clip=[1.0, 2.0], per_frame=[1.0, 2.0], slope=Interval(value=1.0), estimate=Interval(value=1.0)
    )
    maps = [LatentMap(method=HOSTILE, points=[[[0.0, 0.0], [1.0, 1.0]]], truth=[[[0.0, 0.0], [1.0, 0.0]]])]
    clip = EvaluatedClip(name=HOSTILE, caption=HOSTILE, video=HOSTILE + ".mp4", truth="javascript:alert(1).mp4")
    methods = [
        Evaluated(name=name, kind="videos", provenance={HOSTILE: HOSTILE}, metrics=[bad], clips=[clip], maps=maps)
        for name in (HOSTILE, "other")
    ]
    return Report(
        title=HOSTILE,
        command=HOSTILE,
        created=HOSTILE,
        methods=methods,
        extractors={"e": Extractor(name=HOSTILE, dimension=2, weights=HOSTILE, resize=HOSTILE, stands_in_for=HOSTILE)},
        provenance={HOSTILE: HOSTILE},
        differences=[difference("m", HOSTILE, "other", 1.0, 0.5)],
        warnings=[HOSTILE],
    )


@pytest.mark.fault("captions, names and warnings are HTML or a script", "the report shows them as text")
def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    text = build_page(hostile_report(), tmp_path)
    page = Page(text)
    assert "<script>alert" not in text and "<!--" not in text
    assert [tag for tag, _ in page.tags].count("script") == 2  # the data and the page's own
    data = json.loads(page.scripts[0])
    assert data["clips"] == [f"{HOSTILE}: {HOSTILE}"]
    assert "".join(page.texts).count(HOSTILE) > 20
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_json_in_a_script_cannot_end_it() -> None:
    text = embedded_json({"a": HOSTILE})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": HOSTILE}


def test_nothing_is_fetched_and_no_nan_is_shown(tmp_path: Path) -> None:
    text = build_page(hostile_report(), tmp_path)
    for _, attributes in Page(text).tags:
        for name in ("src", "href", "poster", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    without_namespace = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"@import|url\(|https?:", without_namespace)
    assert not re.search(r"\b(nan|NaN|inf)\b", text)


def test_definitions_extractors_stand_ins_and_warnings_are_told() -> None:
    network = Extractor(
        name="TransNetV2", dimension=4864, weights="w", resize="bilinear to 48 x 27", stands_in_for="I3D"
    )
    first = method("A", metric("fvd", 1.0, "lower", extractor="t", samples=12, warning="N is small"))
    whole = report(first, extractors={"t": network}, warnings=["12 clips are few", "12 clips are few"])
    page = Page(build_page(whole, Path(".")))
    text = " ".join(page.texts)
    assert "what fvd is" in text and "N = 12 clips." in text and "bilinear to 48 x 27" in text
    assert "TransNetV2 is an offline stand-in for I3D: no published number compares." in text
    assert "N is small" in text
    assert page.texts.count("12 clips are few") == 1
    (button,) = page.having("aria-controls")
    assert button["aria-controls"] in [attributes.get("id") for _, attributes in page.tags]


def forest_centres(whole: Report) -> list[float]:
    text = build_page(whole, Path("."))
    return [float(x) for x in re.findall(r'<circle class="mean [^"]*" cx="([\d.]+)%"', text)]


def test_the_forest_plot_favours_the_left_method_on_its_right_side() -> None:
    def one(better: Better, a: float, b: float, winner: str, **fields: object) -> float:
        first, second = method("A", metric("m", a, better, **fields)), method("B", metric("m", b, better, **fields))
        estimate = Interval(value=a - b, low=a - b - 0.1, high=a - b + 0.1)
        found = Difference(metric="m", a="A", b="B", estimate=estimate, better=winner)  # type: ignore[arg-type]
        (centre,) = forest_centres(report(first, second, differences=(found,)))
        return centre

    assert one("higher", 3, 1, "a") > 50
    assert one("lower", 3, 1, "b") < 50
    assert one("truth", 3, 1, "a", truth=4.0) > 50
    assert one("truth", 3, 1, "b", truth=0.5) < 50
    assert one("truth", 1, 3, "neither", truth=0.5) > 50  # nearer, though not beyond the noise
    assert one("higher", 2, 1, "a") == pytest.approx(50 + 47 * 1.0 / 1.1, abs=0.01)


def test_curves_have_truth_slopes_and_values() -> None:
    slope = Interval(value=-0.25, low=-0.35, high=-0.15)
    curve = metric("m", 1.0, per_frame=[math.nan, 2.0, 1.5], per_frame_truth=[math.nan, 3.0, 3.0], slope=slope)
    page = Page(build_page(report(method("A", curve)), Path(".")))
    assert "−0.25 " in page.texts or "−0.25" in " ".join(page.texts)
    assert "(−0.35 to −0.15)" in page.texts
    (chart,) = page.having("data-chart")
    values = {line["name"]: line["values"] for line in json.loads(page.scripts[0])["curves"][chart["data-chart"]]}
    assert values == {"A": [None, 2.0, 1.5], "truth": [None, 3.0, 3.0]}
    assert (chart["data-low"], chart["data-high"]) == ("1", "2")


def test_maps_keep_the_shape_of_trajectories_and_name_their_clips() -> None:
    maps = [
        LatentMap(
            method="PCA", points=[[[0.0, 0.0], [4.0, 0.0]]], truth=[[[0.0, 0.0], [0.0, 2.0]]], explained=[0.5, 0.25]
        )
    ]
    page = Page(build_page(report(replace(method("A", clips=1), maps=maps)), Path(".")))
    first, second = (
        [*map(float, re.findall(r"[\d.]+", one["d"] or ""))] for one in page.having("d") if one.get("class") == "hit"
    )
    assert first[2] == first[0] and second[3] == second[1]  # the truth goes up, the model to the right
    assert second[2] - second[0] == pytest.approx(2 * (first[1] - first[3]), abs=0.2)  # one scale for both axes
    assert "x: 50 %, y: 25 % of the variance" in " ".join(page.texts).replace("  ", " ")


def test_baselines_are_grey_and_methods_have_their_own_colours() -> None:
    kinds = [("a", "checkpoint"), ("still", "first-frame"), ("b", "videos"), ("near", "retrieval")]
    styles = method_styles([method(name, kind=kind) for name, kind in kinds])
    assert styles == {"a": "tone0", "still": "still", "b": "tone1", "near": "base"}


# Videos


def put(folder: Path, *paths: str, content: bytes = b"0123456789ab") -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def held(page: Page) -> list[bytes]:
    kinds = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    return [base64.b64decode(text) for kind, text in zip(kinds, page.scripts, strict=True) if kind == "text/plain"]


def test_videos_are_inside_once_and_a_missing_one_is_said_in_its_place(tmp_path: Path) -> None:
    put(tmp_path, "truth/0.mp4", content=b"true")
    put(tmp_path, "A/0.mp4", content=b"made")
    page = Page(build_page(report(method("A", clips=1), method("B", clips=1)), tmp_path))
    assert held(page) == [b"true", b"made"]
    numbers = [video["data-held"] for video in page.having("data-held")]
    assert numbers == ["0", "0", "1"]  # given frame, truth, A
    assert "missing file: B/0.mp4" in page.texts
    assert page.having("data-file") == []


def test_beyond_the_room_first_clips_and_cases_stay_inside(tmp_path: Path) -> None:
    values = [5.0, 5.0, 5.0, 5.0, 5.0, 9.0, 5.0, 1.0]
    first = method("A", metric("m", 1.0, per_clip=values), clips=8)
    put(tmp_path, *(f"{folder}/{i}.mp4" for folder in ("A", "truth") for i in range(8)))
    page = Page(build_page(report(first), tmp_path, video_bytes=6 * 32))  # 6 clips of two 16-byte texts
    linked = {video["data-file"] for video in page.having("data-file")}
    assert len(held(page)) == 12
    assert linked == {f"./{folder}/{i}.mp4" for folder in ("A", "truth") for i in (4, 6)}
    assert any("2 of 8 clips are not inside this page" in text for text in page.texts)


@pytest.mark.fault("a video's name is an address with a script", "the report links a file")
def test_a_linked_video_is_never_a_script(tmp_path: Path) -> None:
    name = "javascript:alert(1)#?.mp4"
    put(tmp_path, name)
    clip = EvaluatedClip(name="c", caption="", video=name)
    whole = report(replace(method("A"), clips=[clip]))
    page = Page(build_page(whole, tmp_path, video_bytes=0))
    assert {video["data-file"] for video in page.having("data-file")} == {"./javascript%3Aalert%281%29%23%3F.mp4"}


def test_a_file_that_browsers_do_not_play_is_said(tmp_path: Path) -> None:
    put(tmp_path, "a.avi")
    whole = report(replace(method("A"), clips=[EvaluatedClip(name="c", caption="", video="a.avi")]))
    assert "browsers don't play this: a.avi" in Page(build_page(whole, tmp_path)).texts


def test_no_clips_no_metrics_no_sections() -> None:
    page = Page(build_page(report(replace(method("A"), clips=[])), Path(".")))
    assert [attributes.get("id") for tag, attributes in page.tags if tag == "section"] == ["provenance"]
