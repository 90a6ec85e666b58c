"""The exceptions that the command line prints as a single line, and the checks that all configs share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


class InputError(ValueError):
    """Bad input from the user. The message names the thing, its value, what was expected and the way out."""


class DivergedError(RuntimeError):
    """A training run whose gradients stay NaN or infinite. The message says when, and what to try."""


class RankLostError(RuntimeError):
    """Another process of the run died, or is out of reach. The message says which."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the work, after what was under way was saved."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        """The signal's."""


def one_line(error: object) -> str:
    """What an error, or any value, says, on a line that fits into another message."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()  # a file's name may hold what UTF-8 can't


def check_fields(
    config: object,
    least: Mapping[str, float],
    *,
    positive: Sequence[str] = (),
    finite: Sequence[str] = (),
    shares: Sequence[str] = (),
    distinct: Sequence[str] = (),
) -> None:
    """Raises InputError for a field of a config with a bad value; None is no value.

    Args:
        least: field -> the smallest value it can have; it must be finite, too.
        positive: fields that are finite numbers > 0.
        finite: fields that are finite numbers of either sign.
        shares: fields that are numbers from 0 to 1.
        distinct: fields that are tuples, not empty, in which nothing is twice.
    """
    for name, smallest in least.items():
        value = getattr(config, name)
        if value is not None and not smallest <= value < math.inf:
            raise InputError(f"{name}: expected at least {smallest:g}, got {value}")
    for name in positive:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name}: expected a number > 0, got {value}")
    for name in finite:
        value = getattr(config, name)
        if value is not None and not math.isfinite(value):
            raise InputError(f"{name}: expected a finite number, got {value}")
    for name in shares:
        value = getattr(config, name)
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name}: expected 0 to 1, got {value}")
    for name in distinct:
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise InputError(
                f"{name}: expected one at least, and none twice, got {' '.join(map(str, values)) or 'none'}"
            )
