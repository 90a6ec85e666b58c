"""What a rater may ask of a study, without the network: who am I, show me a pair, this is my vote.

Raters see pairs by their position in their own order, and videos under names that only the study's secret could tell
apart. Everything that comes from outside is checked here; what can't be used is `Refused` with an HTTP status.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from contrastive_i2v.evaluation.study.assignment import left_method, shuffled
from contrastive_i2v.evaluation.study.pairs import Pair
from contrastive_i2v.evaluation.study.questions import QUESTIONS, QuestionName, Side
from contrastive_i2v.evaluation.study.store import NameTakenError, Rater, Store, StudyFullError, Vote

NAME = re.compile(r"\w(?:[\w .'’-]{0,38}[\w.])?")
METHODS: tuple[Side, Side] = ("a", "b")


class Refused(Exception):
    """A request that can't be served; the message is shown to the rater."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Session:
    """A study being served.

    Args:
        store: the open study.
        pairs: its videos; the same pairs as the store's design.
    """

    def __init__(self, store: Store, pairs: Sequence[Pair]) -> None:
        self.store = store
        self._pairs = {pair.name: pair for pair in pairs}
        self._raters = {rater.id: rater for rater in store.raters()}
        self._files: dict[str, Path] = {}
        for pair in pairs:
            self._files |= {self._token(method, pair.name): getattr(pair, method) for method in METHODS}
            if pair.image:
                self._files[self._token("image", pair.name)] = pair.image

    def welcome(self) -> dict[str, Any]:
        """What the first page says."""
        questions = [asdict(QUESTIONS[name]) for name in self.store.design.questions]
        return {"pairs": len(self._pairs), "questions": questions}

    def join(self, body: object, *, key: str | None = None, by_name: bool = True) -> dict[str, Any]:
        """`{"name": ...}` -> the rater's key and where they stopped. The same name, whatever its case, goes on.

        Args:
            key: of the rater who asks, if they have one.
            by_name: whether a name is enough to go on as that rater; else it takes their key.
        """
        name = _fields(body, {"name"})["name"]
        name = " ".join(unicodedata.normalize("NFC", name).split()) if isinstance(name, str) else ""
        if not NAME.fullmatch(name):
            raise Refused(
                HTTPStatus.BAD_REQUEST, "Please enter a name of 1 to 40 letters, digits, spaces, hyphens or dots."
            )
        try:
            own = self.identify(key).key == name.casefold()
        except Refused:
            own = False
        try:
            rater = self.store.join(name, again=by_name or own)
        except NameTakenError:
            raise Refused(
                HTTPStatus.CONFLICT,
                "This name is taken. If it is yours, go on in the browser you began in; otherwise enter another.",
            ) from None
        except StudyFullError:
            raise Refused(
                HTTPStatus.CONFLICT,
                f"This study already has its {self.store.design.raters} raters. To go on with your own votes, enter "
                f"the name you gave before.",
            ) from None
        self._raters[rater.id] = rater
        return {"key": f"{rater.id}.{self._token('rater', str(rater.id))}", **self.progress(rater)}

    def identify(self, key: str | None) -> Rater:
        """The rater whose key this is."""
        number, _, token = (key or "").partition(".")
        if number.isascii() and number.isdigit() and len(number) < 10:
            rater = self._raters.get(int(number))
            if rater and hmac.compare_digest(token.encode(), self._token("rater", number).encode()):
                return rater
        raise Refused(HTTPStatus.UNAUTHORIZED, "Please enter your name.")

    def progress(self, rater: Rater) -> dict[str, Any]:
        """How far the rater is, and the next step; None = done."""
        design = self.store.design
        done = {(vote.pair, vote.question) for vote in self.store.votes(rater)}
        order = shuffled(design.seed, rater.key, list(self._pairs))
        steps = [(i, question) for i, pair in enumerate(order) for question in design.questions]
        todo = [(i, question) for i, question in steps if (order[i], question) not in done]
        following = {"position": todo[0][0], "question": todo[0][1]} if todo else None
        return {"name": rater.name, "done": len(done), "total": len(steps), "next": following}

    def pair(self, rater: Rater, position: int) -> dict[str, Any]:
        """The pair at a position of the rater's order: two videos, what they were made from, and earlier answers."""
        pair = self._at(rater, position)
        left, right = self._sides(rater, pair)
        answers = {
            vote.question: {"side": "left" if vote.choice == left else "right", "reasons": vote.reasons}
            for vote in self.store.votes(rater)
            if vote.pair == pair.name
        }
        return {
            "position": position,
            "left": f"/video/{self._token(left, pair.name)}",
            "right": f"/video/{self._token(right, pair.name)}",
            "image": f"/image/{self._token('image', pair.name)}" if pair.image else None,
            "caption": pair.caption,
            "answers": answers,
        }

    def vote(self, rater: Rater, body: object) -> dict[str, Any]:
        """`{"position", "question", "side", "reasons"}` -> recorded, and where the rater is now."""
        values = _fields(body, {"position", "question", "side", "reasons"})
        position, question, side, reasons = (values[key] for key in ("position", "question", "side", "reasons"))
        if not isinstance(position, int) or isinstance(position, bool):
            raise _bad("position", position, "a whole number")
        if question not in self.store.design.questions:
            raise _bad("question", question, f"one of {', '.join(self.store.design.questions)}")
        if side not in ("left", "right"):
            raise _bad("side", side, "left or right")
        known = [reason.name for reason in QUESTIONS[cast(QuestionName, question)].reasons]
        if not (isinstance(reasons, list) and reasons and all(r in known for r in reasons)):
            raise _bad("reasons", reasons, f"one or more of {', '.join(known)}")
        pair = self._at(rater, position)
        left, right = self._sides(rater, pair)
        self.store.record(
            Vote(
                rater=rater.name,
                pair=pair.name,
                question=cast(QuestionName, question),
                left=left,
                choice=left if side == "left" else right,
                reasons=tuple(name for name in known if name in reasons),
            )
        )
        return self.progress(rater)

    def file(self, token: str) -> Path:
        """The video or image of that name."""
        if token not in self._files:
            raise Refused(HTTPStatus.NOT_FOUND, "No such video.")
        return self._files[token]

    def _at(self, rater: Rater, position: int) -> Pair:
        if not 0 <= position < len(self._pairs):
            raise Refused(HTTPStatus.NOT_FOUND, f"No pair {position}; the study has {len(self._pairs)}, from 0.")
        return self._pairs[shuffled(self.store.design.seed, rater.key, list(self._pairs))[position]]

    def _sides(self, rater: Rater, pair: Pair) -> tuple[Side, Side]:
        left = left_method(self.store.design.seed, rater.key, pair.name)
        return (left, "b") if left == "a" else (left, "a")

    def _token(self, kind: str, name: str) -> str:
        return hmac.new(self.store.secret.encode(), f"{kind}\0{name}".encode(), hashlib.sha256).hexdigest()[:24]


def _fields(body: object, names: set[str]) -> dict[str, Any]:
    if not isinstance(body, dict) or set(body) != names:
        raise Refused(HTTPStatus.BAD_REQUEST, f"Expected a JSON object with {', '.join(sorted(names))}.")
    return body


def _bad(name: str, value: object, expected: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, f"{name} is {repr(value)[:60]}; expected {expected}.")
