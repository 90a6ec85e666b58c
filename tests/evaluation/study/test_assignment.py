"""Sides and orders are chance, and the same chance every time."""

from __future__ import annotations

import hashlib

from contrastive_i2v.evaluation.study.assignment import left_method, shuffled

PAIRS = [f"{i:05d}" for i in range(400)]


def test_side_is_the_documented_hash() -> None:
    first = hashlib.sha256(b"side\x007\x00ana\x0000003").digest()[0]
    assert left_method(7, "ana", "00003") == ("b" if first % 2 else "a")


def test_sides_are_even_and_independent_of_raters_and_seeds() -> None:
    ana, ben, other = ([left_method(s, r, p) == "a" for p in PAIRS] for s, r in ((0, "ana"), (0, "ben"), (1, "ana")))
    for sides in (ana, ben, other):
        assert 160 < sum(sides) < 240  # four standard deviations
    for sides in (ben, other):
        assert 160 < sum(a == b for a, b in zip(ana, sides, strict=True)) < 240


def test_orders_are_permutations_of_each_rater() -> None:
    ana, ben = shuffled(0, "ana", PAIRS), shuffled(0, "ben", PAIRS)
    assert sorted(ana) == sorted(ben) == PAIRS
    assert ana != ben and ana != PAIRS
    assert ana == shuffled(0, "ana", PAIRS[::-1])  # not by how the folder lists them
