"""Methods compared on the same clips over one or more training seeds, and what the numbers allow to say.

Seed s of every method shares its training batches, noise and sampling noise with seed s of the others, so
differences are taken seed by seed (paired), which removes the noise that they share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_i2v.evaluation.frames import frame_mse, mean_and_error, motion_ratio

# 97.5 % quantiles of Student's t for 1, 2, .. degrees of freedom; the last serves beyond, on the safe side
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Statistic:
    """A number of one method: its value for each seed, their mean, and how sure it is."""

    values: tuple[float, ...]
    """One a seed."""
    spread: float
    """Standard deviation over the seeds; for one seed the standard error over the clips. NaN where neither is."""

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class Measurement:
    """One method: S seeds, N clips, F frames, frame 0 given."""

    errors: Tensor
    """Mean squared error `[S, N, F]` float64, pixels in [-1, 1]."""
    motion: tuple[tuple[float, float], ...]
    """(motion ratio, standard error over the clips) of each seed."""

    @property
    def frames(self) -> int:
        return self.errors.shape[2]

    def error(self, frames: slice) -> Statistic:
        """Mean error over a slice of the frames."""
        clips = self.errors[:, :, frames].mean(dim=2)  # [S, N]
        return _statistic(clips.mean(dim=1).tolist(), mean_and_error(clips[0])[1])

    def frame_error(self, frame: int) -> Statistic:
        """Error of one frame."""
        return self.error(slice(frame, frame + 1))

    def mean_error(self) -> Statistic:
        """Mean error over the generated frames, 1 to F - 1."""
        return self.error(slice(1, None))

    def motion_ratio(self) -> Statistic:
        """Motion against the truth's."""
        return _statistic([ratio for ratio, _ in self.motion], self.motion[0][1])


def measure(videos: Sequence[Tensor], truth: Tensor) -> Measurement:
    """Measure one method's videos, a tensor `[N, F, 3, H, W]` in [-1, 1] a seed, against the truth's."""
    return Measurement(
        torch.stack([frame_mse(video, truth) for video in videos]),
        tuple(motion_ratio(video, truth) for video in videos),
    )


def summary(measured: Measurement) -> dict[str, Statistic]:
    """The numbers of a results table: the error early, half way, at the end and on average, and the motion."""
    last = measured.frames - 1
    shown = sorted({1, measured.frames // 2, last})
    numbers = {f"frame {frame}": measured.frame_error(frame) for frame in shown}
    return numbers | {"mean error": measured.mean_error(), "motion ratio": measured.motion_ratio()}


def paired_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Mean of a[s] - b[s] over S seeds and the half width of its 95 % interval.

        half width = t(0.975, S - 1) * std(a - b) / sqrt(S)

    Infinite for one seed. Raises ValueError for different lengths or none.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"a, b: expected the same number of seeds, at least one, got {len(a)} and {len(b)}")
    gaps = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
    mean, error = mean_and_error(gaps)
    if len(a) == 1:
        return mean, math.inf
    return mean, T_QUANTILES[min(len(a) - 2, len(T_QUANTILES) - 1)] * error


def clear_winner(scores: Mapping[str, Sequence[float]]) -> str | None:
    """The method whose score (lower is better, one a seed) beats every other's beyond the noise between seeds;
    None where no method does, as with a single seed."""
    if len(scores) < 2:
        return None
    best = min(scores, key=lambda name: sum(scores[name]))
    for name, values in scores.items():
        if name == best:
            continue
        gap, half_width = paired_difference(scores[best], values)
        if not gap + half_width < 0:
            return None
    return best


def verdict(
    measured: Mapping[str, Measurement],
    labels: Mapping[str, str],
    *,
    forms: Sequence[str],
    baseline: str,
    still: str,
) -> list[str]:
    """What the numbers say about each of `forms` against `baseline`, and about every method against `still`, the
    first frame repeated: plain sentences, made from the numbers alone."""
    sentences = []
    seeds = len(next(iter(measured.values())).motion)
    if baseline not in measured:
        sentences.append(f"{labels[baseline].capitalize()} was not trained, so nothing here says what the loss does.")
    for name in forms if baseline in measured else ():
        if name == baseline:
            continue
        ours, theirs = measured[name].mean_error(), measured[baseline].mean_error()
        gap, half_width = paired_difference(ours.values, theirs.values)
        if seeds == 1:
            sentences.append(
                f"Trained with one seed, {labels[name]} has a mean error of {ours.mean:.4f} and {labels[baseline]} "
                f"one of {theirs.mean:.4f}{_relative(gap, theirs.mean, labels[name])}."
            )
        elif abs(gap) > half_width:
            sentences.append(
                f"Over {seeds} seeds, {labels[name]} has a {'lower' if gap < 0 else 'higher'} mean error than "
                f"{labels[baseline]}, by {_amount(abs(gap))} ± {_amount(half_width)} (95 % interval of the paired "
                "difference, on these clips): beyond the noise between seeds."
            )
        else:
            signed = ("-" if gap < 0 else "+") + _amount(abs(gap))
            sentences.append(
                f"Over {seeds} seeds, the mean errors of {labels[name]} and {labels[baseline]} differ by {signed} ± "
                f"{_amount(half_width)} (95 % interval of the paired difference, on these clips): within the noise "
                "between seeds, so these runs don't tell the two apart."
            )
    if seeds == 1:
        sentences.append(
            "One seed proves nothing: another would move these numbers too, and only several show by how much."
        )
    if still in measured:
        sentences.append(_against_still(measured, labels, still))
    return sentences


def _against_still(measured: Mapping[str, Measurement], labels: Mapping[str, str], still: str) -> str:
    limit = measured[still].mean_error().mean
    others = [name for name in measured if name != still]
    better = [labels[name] for name in others if measured[name].mean_error().mean < limit]
    worse = [labels[name] for name in others if not measured[name].mean_error().mean < limit]
    parts = []
    if better:
        parts.append(f"{_listed(better)} stay{'s' * (len(better) == 1)} below that")
    if worse:
        parts.append(f"{_listed(worse)} do{'es' * (len(worse) == 1)} not{' stay below that' * (not better)}")
    return f"Repeating the first frame has a mean error of {limit:.4f}: {'; '.join(parts)}."


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _relative(gap: float, reference: float, name: str) -> str:
    if not (gap and reference > 0):
        return ""
    return f": {100 * abs(gap) / reference:.1f} % {'lower' if gap < 0 else 'higher'} with {name}"


def _statistic(values: list[float], clip_error: float) -> Statistic:
    spread = float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else clip_error
    return Statistic(tuple(values), spread)


def _amount(value: float) -> str:
    """Four decimals, or two digits of what they would hide."""
    return f"{value:.4f}" if value >= 5e-4 or value == 0 else f"{value:.1e}"
