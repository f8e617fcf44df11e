"""The arithmetic of the benchmark: ratios pair by pair, medians, targets."""

from __future__ import annotations

import dataclasses

import pytest

from tests.bench import encryption
from tests.bench.figures import Pair, compare
from tests.bench.moves import Move, Step


def move(method: str, downtime_us: float, total_us: float = 1_000_000, sent_bytes: int = 1000) -> Move:
    return Move(method, "a", "b", downtime_us, total_us, sent_bytes)


def pairs(*downtimes_us: tuple[float, float]) -> list[Pair]:
    return [Pair(move("phaul", phaul), move("by hand", by_hand)) for phaul, by_hand in downtimes_us]


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine became three times slower for the last pair: the ratio of the medians would be 0.67.
    downtime, total, sent = compare(256, pairs((100, 200), (200, 300), (900, 900)))
    assert downtime.quantity == "downtime"
    assert downtime.ratio == pytest.approx(200 / 300)
    assert (downtime.smallest_ratio, downtime.largest_ratio) == (0.5, 1.0)
    assert (downtime.phaul, downtime.by_hand) == (200, 300)
    assert (total.ratio, sent.ratio) == (1.0, 1.0)


def test_one_slow_move_does_not_decide() -> None:
    downtime, *_ = compare(256, pairs((40, 100), (40, 100), (800, 100)))
    assert downtime.ratio == pytest.approx(0.4)
    assert downtime.reached


@pytest.mark.parametrize(
    ("mib", "downtime_us", "reached"), [(16, 500, True), (16, 501, False), (1024, 400, True), (1024, 401, False)]
)
def test_targets_are_limits(mib: int, downtime_us: float, reached: bool) -> None:
    downtime, *_ = compare(mib, pairs((downtime_us, 1000)))
    assert downtime.reached is reached


def test_where_nothing_was_promised_everything_is_reached() -> None:
    comparisons = compare(64, pairs((5000, 1000)))
    assert all(comparison.target is None and comparison.reached for comparison in comparisons)
    small = compare(16, pairs((100, 1000)))
    assert [comparison.target is None for comparison in small] == [False, True, True]


def test_every_quantity_looks_at_its_own_field() -> None:
    pair = Pair(
        Move("phaul", "a", "b", downtime_us=1, total_us=2, sent_bytes=3),
        Move("by hand", "b", "a", downtime_us=2, total_us=8, sent_bytes=24),
    )
    assert [comparison.ratio for comparison in compare(256, [pair])] == [1 / 2, 1 / 4, 1 / 8]
    assert dataclasses.asdict(pair.phaul)["steps"] == ()


def test_the_rate_with_encryption_is_compared_pair_by_pair() -> None:
    steps = (Step("dump (source)", 1e6, 500e3), Step("send images (source)", 2e6, 9e6))
    assert encryption.rate(dataclasses.replace(move("phaul", 1), steps=steps)) == pytest.approx(2 << 30)
    # The machine became three times slower for the last pair.
    assert encryption.ratio([{"on": 60, "off": 100}, {"on": 70, "off": 100}, {"on": 27, "off": 33}]) == 0.7
