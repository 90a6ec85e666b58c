"""What is said must follow from the numbers: one seed settles nothing, several settle what beats their noise."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from contrastive_i2v.evaluation.compare import (
    Measurement,
    clear_winner,
    measure,
    paired_difference,
    summary,
    verdict,
)

LABELS = {"new": "new form", "old": "old form", "still": "repeated frame"}


def fake(*mean_errors: float, clips: int = 2) -> Measurement:
    """A measurement whose mean error over frames 1 .. 3 is given for each seed; frame 0's is 9."""
    errors = torch.tensor(mean_errors, dtype=torch.float64)[:, None, None].expand(-1, clips, 4).clone()
    errors[:, :, 0] = 9.0
    return Measurement(errors, tuple((0.5, 0.1) for _ in mean_errors))


def test_measure_and_summary_on_known_videos() -> None:
    truth = torch.zeros(2, 5, 3, 4, 4)
    truth[:, 1::2] = 0.5
    off = truth.clone()
    off[0, 4] += 1.0
    off[1, 4] += 0.5
    measured = measure([truth, off], truth)
    numbers = summary(measured)
    assert list(numbers) == ["frame 1", "frame 2", "frame 4", "mean error", "motion ratio"]
    assert numbers["frame 4"].values == (0.0, 0.625)
    assert numbers["frame 4"].mean == 0.3125
    assert numbers["frame 4"].spread == pytest.approx(statistics.stdev([0.0, 0.625]))
    assert numbers["mean error"].values == (0.0, 0.625 / 4)  # over frames 1 .. 4
    assert numbers["motion ratio"].values[0] == 1.0

    one_seed = summary(measure([off], truth))["frame 4"]
    assert one_seed.spread == pytest.approx(statistics.stdev([1.0, 0.25]) / math.sqrt(2))  # over the clips


def test_short_videos_list_no_frame_twice() -> None:
    truth = torch.rand(2, 2, 3, 4, 4)
    assert list(summary(measure([truth], truth))) == ["frame 1", "mean error", "motion ratio"]


def test_paired_difference_is_students_interval() -> None:
    gap, half_width = paired_difference([1.0, 2.0, 3.0], [0.5, 1.0, 2.4])
    assert gap == pytest.approx(0.7)
    assert half_width == pytest.approx(4.303 * statistics.stdev([0.5, 1.0, 0.6]) / math.sqrt(3))
    assert paired_difference([1.0], [0.0]) == (1.0, math.inf)
    many = paired_difference([0.0, 1.0] * 10, [0.0] * 20)[1]
    assert many == pytest.approx(2.262 * statistics.stdev([0.0, 1.0] * 10) / math.sqrt(20))
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([1.0, 2.0], [1.0])


def test_pairing_removes_noise_that_methods_share() -> None:
    shared = [0.1, 0.9, 0.4, 0.6]
    assert clear_winner({"a": shared, "b": [x + 0.01 for x in shared]}) == "a"


def test_no_winner_from_one_seed_or_within_the_noise() -> None:
    assert clear_winner({"a": [0.1], "b": [0.9]}) is None
    assert clear_winner({"a": [0.1, 0.5, 0.3], "b": [0.4, 0.2, 0.5]}) is None
    assert clear_winner({"a": [0.1, 0.1], "b": [0.1, 0.1]}) is None
    assert clear_winner({"a": [0.1, 0.1]}) is None
    # beats b, but not c
    assert clear_winner({"a": [0.1, 0.11, 0.1], "b": [0.5, 0.5, 0.51], "c": [0.1, 0.12, 0.1]}) is None


def say(new: Measurement, old: Measurement) -> str:
    return " ".join(verdict({"new": new, "old": old}, LABELS, forms=["new", "old"], baseline="old", still="still"))


def test_one_seed_is_said_to_prove_nothing() -> None:
    text = say(fake(0.1), fake(0.2))
    assert "new form has a mean error of 0.1000 and old form one of 0.2000: 50.0 % lower with new form" in text
    assert "One seed proves nothing" in text
    assert "beyond the noise" not in text
    assert "50.0 % higher" in say(fake(0.3), fake(0.2))


def test_several_seeds_decide_in_either_direction_or_not_at_all() -> None:
    low, high = fake(0.10, 0.11, 0.12), fake(0.20, 0.211, 0.219)
    assert "new form has a lower mean error than old form, by 0.1000" in say(low, high)
    assert "new form has a higher mean error than old form, by 0.1000" in say(high, low)
    barely = fake(0.10003, 0.11003, 0.12003)
    assert "higher mean error than old form, by 3.0e-05" in say(barely, low)
    mixed = say(fake(0.10, 0.30, 0.20), fake(0.20, 0.11, 0.25))
    assert "don't tell the two apart" in mixed
    assert "lower" not in mixed
    assert "One seed" not in mixed


def test_a_still_picture_is_the_bar() -> None:
    measured = {"new": fake(0.1), "old": fake(0.3), "still": fake(0.2)}
    text = verdict(measured, LABELS, forms=["new", "old"], baseline="old", still="still")[-1]
    assert text == "Repeating the first frame has a mean error of 0.2000: new form stays below that; old form does not."
    measured = {"new": fake(0.3), "old": fake(0.3), "still": fake(0.2)}
    text = verdict(measured, LABELS, forms=["new", "old"], baseline="old", still="still")[-1]
    assert text.endswith("new form and old form do not stay below that.")


def test_without_a_baseline_nothing_is_claimed() -> None:
    text = " ".join(verdict({"new": fake(0.1, 0.1)}, LABELS, forms=["new"], baseline="old", still="still"))
    assert text == "Old form was not trained, so nothing here says what the loss does."
