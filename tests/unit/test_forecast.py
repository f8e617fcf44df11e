"""What downtime is predicted: the fits, the working-set curve, what earlier migrations teach; recorded pre-copies."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.migration.forecast import Costs, Outcome, Round, costs_of, line, outcome_of, pace, predict, standstill_us
from phaul.units import MIB
from tests.unit.precopy_world import World

NOTHING = Costs(256 * MIB, 0, 0, 0.0)
points = st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e8)), min_size=1, max_size=10)

# CRIU 4.2.1 by hand between two virtual machines without acceleration, 64 MiB: pre-dump three times, then the dump.
BY_HAND_IN_VMS = [
    Round(1, 72_600_000, 72_600_000, 1_900_000, 98_000, 0),
    Round(2, 2_400_000, 2_400_000, 260_000, 46_000, 2_000_000),
    Round(3, 1_800_000, 1_800_000, 240_000, 44_000, 360_000),
]


@given(points, st.floats(0, 1), st.floats(0, 1))
def test_a_line_has_no_negative_part(drawn: list[tuple[float, float]], least: float, alone: float) -> None:
    fixed, slope = line(drawn, least=least, alone=alone)
    assert fixed >= 0
    assert slope >= 0


@given(points, st.floats(0, 10), st.floats(0, 10), st.floats(0, 1e9), st.floats(0, 1))
def test_a_faster_link_never_raises_what_a_line_says(
    drawn: list[tuple[float, float]], slow: float, other: float, at: float, least: float
) -> None:
    fast, slow = sorted((slow, other))
    times = []
    for us_per_byte in (fast, slow):
        fixed, slope = line([(x, y + us_per_byte * x) for x, y in drawn], least=least)
        times.append(fixed + slope * at)
    assert times[0] <= times[1] * (1 + 1e-6) + 1e-3


@given(st.floats(1e6, 1e10), st.integers(0, 100_000), st.lists(st.integers(1, 10**9), min_size=2, max_size=8))
def test_a_line_through_points_on_a_line_is_that_line(rate: float, fixed_us: int, sizes: list[int]) -> None:
    fixed, slope = line([(size, fixed_us + size * 1e6 / rate) for size in sizes])
    assert fixed + slope * max(sizes) == pytest.approx(fixed_us + max(sizes) * 1e6 / rate, rel=1e-6, abs=1)
    if min(sizes) < max(sizes) / 2:
        assert slope == pytest.approx(1e6 / rate, rel=1e-3)


def test_one_round_that_is_off_does_not_matter() -> None:
    sizes = [256, 64, 32, 16, 8, 4]
    rounds = [Round(n, size * MIB, size * MIB, 50_000 + size * 10_000, 0, 1) for n, size in enumerate(sizes, 1)]
    true = pace(rounds)
    rounds[3] = dataclasses.replace(rounds[3], send_us=2_000_000)
    assert pace(rounds) == pytest.approx(true, rel=0.1)
    assert true == pytest.approx(10_000 / MIB, rel=1e-6)


def test_small_rounds_do_not_hide_the_throughput() -> None:
    world = World(link_bytes_per_second=400 * MIB, round_us=80_000)
    for _ in range(4):
        world.run_round()
    predicted = predict(world.rounds, NOTHING)
    assert predicted.throughput_bytes_per_second == pytest.approx(400 * MIB, rel=0.05)


@given(
    st.integers(4 * MIB, 512 * MIB),
    st.floats(1e6, 5e8),
    st.floats(5e7, 5e9),
    st.floats(1.0, 20.0),
)
def test_a_faster_link_does_not_raise_the_prediction(hot: int, writes: float, link: float, faster: float) -> None:
    predicted = []
    for speed in (link, link * faster):
        world = World(hot_bytes=hot, memory_bytes=1024 * MIB, bytes_per_second=writes, link_bytes_per_second=speed)
        for _ in range(5):
            world.run_round()
        predicted.append(predict(world.rounds, world.true_costs()).downtime_us)
    assert predicted[1] <= predicted[0] * 1.02 + 1000


@given(
    st.integers(4 * MIB, 512 * MIB),
    st.floats(1e6, 5e8),
    st.floats(5e7, 5e9),
)
def test_the_dirty_set_is_seen_to_saturate(hot: int, writes: float, link: float) -> None:
    world = World(hot_bytes=hot, memory_bytes=1024 * MIB, bytes_per_second=writes, link_bytes_per_second=link)
    for _ in range(5):
        world.run_round()
    *_, downtime_us = world.freeze()
    predicted = predict(world.rounds, world.true_costs())
    assert predicted.downtime_us == pytest.approx(downtime_us, rel=0.25)
    assert predicted.dirty_bytes <= hot * 1.001


def test_more_is_dirtied_in_a_second_the_shorter_the_interval() -> None:
    """32 MiB written over and over: in 2 s and in 0.2 s nearly the same pages."""
    rounds = [
        Round(1, 256 * MIB, 256 * MIB, 2_000_000, 1_000, 0),
        Round(2, 32 * MIB, 32 * MIB, 250_000, 1_000, 2_000_000),
        Round(3, 31 * MIB, 31 * MIB, 240_000, 1_000, 250_000),
    ]
    predicted = predict(rounds, NOTHING)
    assert predicted.exponent < 0.25
    assert predicted.dirty_bytes == pytest.approx(31 * MIB, rel=0.05)


def test_the_newest_round_counts_most() -> None:
    calm = [Round(1, 256 * MIB, 256 * MIB, 1_000_000, 0, 0), *(Round(n, MIB, MIB, 9_000, 0, 10_000) for n in (2, 3, 4))]
    storm = [*calm, Round(5, 64 * MIB, 64 * MIB, 10_000, 0, 10_000)]
    assert predict(storm, NOTHING).dirty_bytes >= 64 * MIB
    after = [*storm, *(Round(n, MIB, MIB, 10_000, 0, 10_000) for n in (6, 7, 8))]
    assert predict(after, NOTHING).dirty_bytes < 4 * MIB


def test_rounds_before_a_throttle_do_not_count() -> None:
    fast = [Round(1, 256 * MIB, 256 * MIB, 10_000, 0, 0), *(Round(n, 100 * MIB, 0, 10_000, 0, 10_000) for n in (2, 3))]
    slowed = [*fast, Round(4, 10 * MIB, 0, 10_000, 0, 10_000, 20)]
    assert predict(slowed, NOTHING).dirty_bytes == pytest.approx(10 * MIB, rel=0.1)


def test_after_one_round_everything_may_be_dirty() -> None:
    predicted = predict(BY_HAND_IN_VMS[:1], NOTHING)
    assert not predicted.measured
    assert predicted.dirty_bytes == 72_600_000


def test_recorded_rounds_predict_the_recorded_dump() -> None:
    """The final dump sent 1.9 MB."""
    assert predict(BY_HAND_IN_VMS, NOTHING).dirty_bytes == pytest.approx(1_900_000, rel=0.3)


def test_a_first_migration_is_guessed_within_a_factor_of_two() -> None:
    """By hand: frozen for 378 ms, of which 200 are a defect of CRIU's page server, then 480 ms of restore."""
    predicted = predict(BY_HAND_IN_VMS, costs_of(BY_HAND_IN_VMS, 64 * MIB))
    assert 0.5 < predicted.downtime_us / (178_000 + 480_000) < 2


def test_experience_replaces_the_guess() -> None:
    outcome = outcome_of(
        BY_HAND_IN_VMS, memory_bytes=64 * MIB, page_bytes=1_900_000, dump_us=378_000, downtime_us=858_000
    )
    assert outcome is not None
    costs = costs_of(BY_HAND_IN_VMS, 64 * MIB, [outcome])
    assert costs.learnt_from == 1
    assert predict(BY_HAND_IN_VMS, costs).downtime_us == pytest.approx(858_000, rel=0.02)
    assert Outcome.from_data(json.loads(json.dumps(outcome.as_data()))) == outcome


def test_without_a_round_nothing_is_learnt() -> None:
    assert outcome_of([], memory_bytes=1, page_bytes=1, dump_us=1, downtime_us=1) is None


def test_a_restore_that_grows_with_memory_is_told_from_one_that_does_not() -> None:
    def learnt(restore_us_per_mib: int, *, lazy: bool) -> Costs:
        outcomes = [
            Outcome(size * MIB, 4_000, 10_000, 50_000 + size * restore_us_per_mib, lazy) for size in (64, 256, 128)
        ]
        return costs_of((), 1024 * MIB, outcomes, lazy=lazy)

    assert learnt(400, lazy=False).restoring_us == pytest.approx(50_000 + 1024 * 400, rel=0.05)
    assert learnt(0, lazy=True).restoring_us == pytest.approx(50_000, rel=0.05)


def test_lazy_and_whole_restores_teach_nothing_of_each_other() -> None:
    outcomes = [Outcome(256 * MIB, 4_000, 10_000, 400_000), Outcome(256 * MIB, 4_000, 10_000, 20_000, lazy=True)]
    assert costs_of((), 256 * MIB, outcomes, lazy=True).restoring_us == 20_000
    assert costs_of((), 256 * MIB, outcomes).restoring_us == 400_000


def test_a_workload_with_more_to_freeze_costs_more() -> None:
    outcomes = [Outcome(64 * MIB, 4_000, 30_000, 60_000)]
    many = [dataclasses.replace(each, frozen_us=40_000) for each in BY_HAND_IN_VMS]
    same = [dataclasses.replace(each, frozen_us=4_000) for each in BY_HAND_IN_VMS]
    assert costs_of(many, 64 * MIB, outcomes).freeze_us > 5 * 30_000
    assert costs_of(same, 64 * MIB, outcomes).freeze_us == 30_000


@given(st.floats(0.01, 100), st.floats(1, 1.2))
def test_rounds_that_stand_still_for_a_little_longer_say_a_little_of_the_hosts(ratio: float, more: float) -> None:
    def costs(frozen_us: float) -> Costs:
        rounds = [dataclasses.replace(each, frozen_us=round(frozen_us)) for each in BY_HAND_IN_VMS]
        return costs_of(rounds, 64 * MIB, [Outcome(64 * MIB, 1_000_000, 300_000, 600_000)])

    here, there = costs(1_000_000 * ratio), costs(1_000_000 * ratio * more)
    assert here.fixed_us <= there.fixed_us <= here.fixed_us * more * 1.01, "without a leap"
    assert abs(math.log(here.fixed_us / 900_000)) <= abs(math.log(ratio)) + 0.01, "less than in proportion"


def test_the_way_back_is_predicted_by_the_way_there_until_there_is_better() -> None:
    there = Outcome(256 * MIB, 4_000, 10_000, 100_000, back=True)
    here = Outcome(256 * MIB, 4_000, 10_000, 200_000)
    assert costs_of((), 256 * MIB, [there]).restoring_us == 100_000
    assert costs_of((), 256 * MIB, [here, there]).restoring_us == 200_000


def test_the_pages_of_a_round_are_not_taken_for_its_standstill() -> None:
    assert standstill_us(BY_HAND_IN_VMS) == pytest.approx(44_000, rel=0.05)


def test_a_throttle_does_not_make_the_hosts_look_slow() -> None:
    slowed = [
        dataclasses.replace(each, number=each.number + 3, frozen_us=900_000, speed_percent=10)
        for each in BY_HAND_IN_VMS
    ]
    assert standstill_us([*BY_HAND_IN_VMS, *slowed]) == standstill_us(BY_HAND_IN_VMS)


def test_a_single_odd_migration_does_not_spoil_the_costs() -> None:
    dice = random.Random(1)
    outcomes = [
        Outcome(256 * MIB, 4_000, round(30_000 * dice.uniform(0.9, 1.1)), round(60_000 * dice.uniform(0.9, 1.1)))
        for _ in range(9)
    ]
    outcomes.append(Outcome(256 * MIB, 4_000, 900_000, 2_000_000))
    assert costs_of((), 256 * MIB, outcomes).fixed_us == pytest.approx(90_000, rel=0.15)


def test_the_newest_migrations_count_for_more() -> None:
    """The first one of an agent is slower than all others: it is not half of the truth for long."""
    outcomes = [Outcome(256 * MIB, 4_000, 10_000, us) for us in (300_000, 100_000)]
    assert costs_of((), 256 * MIB, outcomes).fixed_us == 110_000
    slower = [Outcome(256 * MIB, 4_000, 10_000, us) for us in (100_000,) * 4 + (200_000,) * 2]
    assert costs_of((), 256 * MIB, slower).fixed_us == 210_000


def test_restores_of_about_the_same_size_say_nothing_of_how_they_grow() -> None:
    """A Redis that moves to and fro is not of the same size to the byte; noise over a few KiB is no slope."""
    outcomes = [
        Outcome(256 * MIB + extra, 4_000, 10_000, us) for extra, us in ((0, 60_000), (8_192, 90_000), (16_384, 75_000))
    ]
    costs = costs_of((), 1024 * MIB, outcomes)
    assert costs.restore_us_per_mib * 256 == pytest.approx(30_000, rel=0.1)
    assert costs_of((), 256 * MIB, outcomes).restoring_us == pytest.approx(75_000, rel=0.01)
