"""The table over training seeds: what the clips' intervals don't hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

from contrastive_i2v.evaluation.report.rows import Styles, decimals, number
from contrastive_i2v.evaluation.results import FormOverSeeds, Interval, Report, SeedNumber


@dataclass(frozen=True, kw_only=True)
class SeedsTable:
    """Numbers down, forms across."""

    forms: list[FormOverSeeds]
    styles: Styles
    """Of each form."""
    rows: list[tuple[SeedNumber, str, list[tuple[str, str, bool]]]]
    """Of each number what it is, the truth's, and a cell a form: the mean, the difference to the baseline, whether its
    interval leaves 0 out."""
    truth: bool
    """Whether some number has a value of the true videos."""


def seeds_table(report: Report, styles: Styles) -> SeedsTable | None:
    """The table where some form has two seeds or more."""
    if all(len(form.seeds) < 2 for form in report.over_seeds):
        return None
    rows = []
    for index, about in enumerate(report.over_seeds[0].numbers):
        numbers = [form.numbers[index] for form in report.over_seeds]
        places = decimals([Interval(value=one.mean) for one in numbers])
        cells = [(number(one.mean, places), difference(one), one.is_apart) for one in numbers]
        rows.append((about, number(about.truth, places), cells))
    of_form = {method.training.form: styles[method.name] for method in report.methods if method.training}
    truth = any(math.isfinite(about.truth) for about, _, _ in rows)
    return SeedsTable(forms=report.over_seeds, styles={**styles, **of_form}, rows=rows, truth=truth)


def difference(one: SeedNumber) -> str:
    """The paired difference as "-1.2 ± 0.8 %" of the baseline, "" where there is none."""
    if one.difference is None or not one.baseline:
        return ""
    value, low, high = (
        end * 100 / abs(one.baseline) for end in (one.difference.value, one.difference.low, one.difference.high)
    )
    places = min(2, decimals([Interval(value=value, low=low, high=high)]))
    half = f" ± {number((high - low) / 2, places)}" if math.isfinite(high) else ""
    return f"{number(value, places, sign=True)}{half} %"
