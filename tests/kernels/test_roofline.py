"""The counted work: against numbers worked out by hand, and against the launchers' own limits."""

from __future__ import annotations

import pytest
from contrastive_i2v.kernels import dispatch, roofline


@pytest.mark.parametrize(
    ("size", "flop", "megabytes"),
    [(16, 8.4e6, 0.79), (256, 2.15e9, 12.6), (4096, 0.55e12, 201), (32768, 35.2e12, 1610)],
)
def test_the_floor_is_the_designs(size: int, flop: float, megabytes: float) -> None:
    work = roofline.floor(size, size, 4096, 2)
    assert work.flop == pytest.approx(flop, rel=0.01)
    assert work.bytes / 1e6 == pytest.approx(megabytes, rel=0.01)


def test_the_plan_is_above_the_floor_and_bound_by_its_products_when_large() -> None:
    for size in (16, 256, 4096, 32768):
        plan, floor = roofline.plan(size, size, 4096, 2), roofline.floor(size, size, 4096, 2)
        assert plan.flop == floor.flop * (1.5 if size <= 512 else 1)
        assert plan.bytes > floor.bytes
    assert plan.seconds() == plan.flop / roofline.H200_FLOP_PER_SECOND
    assert plan.seconds() == pytest.approx(44.5e-3, rel=0.01)


def test_regimes_part_where_the_launcher_parts_them() -> None:
    assert roofline.SMALL_LOGITS == dispatch.MAX_SMALL_LOGITS
