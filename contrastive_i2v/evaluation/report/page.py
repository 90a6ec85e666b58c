"""The report as one HTML file: videos beside the truth, the numbers, the curves, and how to go on.

`build_page` only lays out what it is given. Everything that comes from outside (captions, paths, labels) is escaped.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from contrastive_i2v.evaluation.compare import Measurement, Statistic, clear_winner, summary
from contrastive_i2v.evaluation.report.charts import Series, line_chart
from contrastive_i2v.evaluation.report.template import SCRIPT, STYLE

MOTION = "motion ratio"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table and a line of the charts."""

    label: str
    """What the page calls it."""
    style: str
    """CSS class: contrastive, baseline, literal, base or still."""
    measured: Measurement
    reference: bool = False
    """Whether it was not trained here."""


@dataclass(frozen=True, kw_only=True)
class HeldOutRow:
    """A held-out clip: its caption, and what each column shows."""

    caption: str
    videos: Mapping[str, bytes]
    """Column title -> mp4."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with its caption; left out when its series have no point."""

    title: str
    series: Sequence[Series]
    x_label: str
    caption: str = ""
    from_zero: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the page shows, in its order."""

    title: str
    summary: str
    rows: Sequence[HeldOutRow]
    videos_note: str
    fps: float
    methods: Sequence[Method]
    verdict: Sequence[str]
    """Sentences made from the numbers."""
    charts: Sequence[Chart]
    config: Mapping[str, str]
    commands: Mapping[str, str]
    """What it does -> command line."""


def build_page(report: Report) -> str:
    """The page, self-contained: videos, style and script are inside, and nothing is fetched."""
    frames = report.methods[0].measured.frames
    body = [
        f"<h1>{escape(report.title)}</h1><p>{escape(report.summary)}</p>",
        _videos(report, frames),
        "<h2>Numbers</h2>",
        *(f"<p>{_unbroken(escape(sentence))}</p>" for sentence in report.verdict),
        _table(report.methods),
        "<h2>Curves</h2>",
        f'<div class="charts">{"".join(_chart(chart) for chart in report.charts)}</div>',
        "<h2>How it was made</h2>",
        "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in report.config.items()) + "</dl>",
        "<h2>Go on</h2>",
        *(f"<h3>{escape(what)}</h3><pre>{_command(line)}</pre>" for what, line in report.commands.items()),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(report.title)}</title><style>{STYLE}</style></head>\n'
        f'<body data-fps="{report.fps:g}" data-frames="{frames}"><main>\n'
        + "\n".join(body)
        + f"\n</main><script>{SCRIPT}</script></body></html>\n"
    )


def _videos(report: Report, frames: int) -> str:
    controls = (
        '<div class="controls" hidden><button id="play" type="button">Pause</button>'
        f'<input id="frame" type="range" min="0" max="{frames - 1}" value="0" step="1" aria-label="Frame">'
        '<output id="shown"></output></div>'
    )
    clips = "\n".join(_clip(row) for row in report.rows)
    return f'<h2>Held-out clips</h2><p class="muted">{escape(report.videos_note)}</p>\n{controls}\n{clips}'


def _clip(row: HeldOutRow) -> str:
    figures = []
    for column, video in row.videos.items():
        source = f"data:video/mp4;base64,{base64.b64encode(video).decode()}"
        figures.append(
            f'<figure><video src="{source}" autoplay loop muted playsinline aria-label="{escape(column)}"></video>'
            f"<figcaption>{escape(column)}</figcaption></figure>"
        )
    return (
        f'<section class="clip" style="--columns:{len(figures)}"><p>{escape(row.caption)}</p>'
        f'<div class="videos">{"".join(figures)}</div></section>'
    )


def _table(methods: Sequence[Method]) -> str:
    """Rows of methods; a number is bold where it beats all others beyond the noise between seeds."""
    seeds, clips, frames = methods[0].measured.errors.shape
    rows = [summary(method.measured) for method in methods]
    columns = {title: [row[title] for row in rows] for title in rows[0]}
    best = {title: _best(values, from_one=title == MOTION) for title, values in columns.items()}
    below = dict.fromkeys(columns, "error ↓") | {"mean error": f"1–{frames - 1} ↓", MOTION: "truth = 1"}
    head = "".join(f"<th>{escape(title)}<br><small>{escape(below[title])}</small></th>" for title in columns)
    lines = []
    for i, method in enumerate(methods):
        cells = []
        for title, values in columns.items():
            digits = 2 if title == MOTION else 4
            text = _fixed(values[i].mean, digits)
            text = f"<b>{text}</b>" if best[title] == i else text
            spread = f"<small>±&#8202;{_fixed(values[i].spread, digits)}</small>" if values[i].spread > 0 else ""
            cells.append(f"<td>{text}{spread}</td>")
        row = ' class="reference"' if method.reference else ""
        lines.append(f"<tr{row}><td>{escape(method.label)}</td>{''.join(cells)}</tr>")
    if seeds > 1:
        spread = f"± is the standard deviation over {seeds} seeds. Bold beats every other row beyond the noise between"
        spread += " seeds (95 % interval of the paired difference); no bold, no clear winner."
    else:
        spread = f"± is the standard error over the {clips} clips; the noise between seeds comes on top of it."
    note = f"Error: mean squared error against the truth, pixels in [−1, 1]; frame 0 is given. {spread}"
    return (
        f'<div class="scroll"><table><thead><tr><th>method</th>{head}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div><p class="muted note">{_unbroken(escape(note))}</p>'
    )


def _best(values: Sequence[Statistic], *, from_one: bool) -> int | None:
    scores = {str(i): [abs(v - 1) if from_one else v for v in one.values] for i, one in enumerate(values)}
    winner = clear_winner(scores)
    return None if winner is None else int(winner)


def _chart(chart: Chart) -> str:
    series = [one for one in chart.series if any(math.isfinite(y) for _, y in one.points)]
    svg = line_chart(series, x_label=chart.x_label, y_label=chart.title, from_zero=chart.from_zero)
    if not svg:
        return ""
    legend = "".join(
        f'<span><svg viewBox="0 0 26 8" aria-hidden="true"><path class="line {escape(one.style)}" d="M0 4H26"/></svg>'
        f"{escape(one.name)}</span>"
        for one in series
    )
    caption = f"<figcaption>{escape(chart.caption)}</figcaption>" if chart.caption else ""
    return f'<figure><h3>{escape(chart.title)}</h3><div class="legend">{legend}</div>{svg}{caption}</figure>'


def _command(line: str) -> str:
    """A command line that wraps between its words, not within an option's name."""
    return re.sub(r"--[\w.-]+", r"<span>\g<0></span>", escape(line))


def _unbroken(text: str) -> str:
    """No line ends between a number and its ± or %."""
    return text.replace(" %", "&nbsp;%").replace(" ± ", "&nbsp;±&nbsp;")


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
