"""What raters are asked, after JUICE: two choices, each justified by reasons from a fixed list.

Source: Girdhar et al., "Emu Video" (arXiv 2311.10709), section 4: Quality is judged without the text, Faithfulness
with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QuestionName = Literal["quality", "faithfulness"]
Side = Literal["a", "b"]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One checkbox."""

    name: str
    title: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """One choice between two videos."""

    name: QuestionName
    title: str
    ask: str
    hint: str
    shows_caption: bool
    reasons: tuple[Reason, ...]


QUALITY = Question(
    name="quality",
    title="Quality",
    ask="Which video do you prefer?",
    hint="Judge only how it looks and moves.",
    shows_caption=False,
    reasons=(
        Reason(name="sharpness", title="Sharpness", detail="crisp, without blur or noise"),
        Reason(name="motion_smoothness", title="Smooth motion", detail="no jerks, no flicker"),
        Reason(name="recognisable_objects", title="Recognisable objects", detail="you can tell what things are"),
        Reason(name="frame_consistency", title="Consistent frames", detail="things stay themselves"),
        Reason(name="amount_of_motion", title="Amount of motion", detail="neither frozen nor restless"),
    ),
)

FAITHFULNESS = Question(
    name="faithfulness",
    title="Faithfulness",
    ask="Which video matches the text better?",
    hint="",
    shows_caption=True,
    reasons=(
        Reason(name="spatial_alignment", title="What it shows", detail="the right things, in the right places"),
        Reason(name="temporal_alignment", title="What happens", detail="the right motion, in the right order"),
    ),
)

QUESTIONS: dict[QuestionName, Question] = {question.name: question for question in (QUALITY, FAITHFULNESS)}
