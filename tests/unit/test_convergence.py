"""When pre-copy freezes, goes on, throttles or gives up: over generated and recorded histories."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.migration.convergence import Action, Contract, Decision, decide, explain, refusal
from phaul.migration.facts import OnStall
from phaul.migration.forecast import Costs, Outcome, Round
from phaul.migration.throttle import STEPS_PERCENT, next_step
from phaul.units import MIB
from tests.unit.precopy_world import World

FREE = Costs(256 * MIB, 0, 0, 0.0)
STEP_BYTES = 10 * MIB

rounds_of_any_kind = st.lists(
    st.tuples(
        st.integers(0, 512 * MIB),
        st.integers(1, 20_000_000),
        st.integers(0, 500_000),
        st.integers(1, 20_000_000),
        st.sampled_from((100, 80, 20)),
    ),
    min_size=1,
    max_size=12,
).map(
    lambda drawn: [
        Round(number, pages, pages, send_us, frozen_us, interval_us if number > 1 else 0, speed)
        for number, (pages, send_us, frozen_us, interval_us, speed) in enumerate(drawn, 1)
    ]
)
costs_of_any_kind = st.builds(
    Costs,
    st.integers(1, 512 * MIB),
    st.integers(0, 400_000),
    st.integers(0, 400_000),
    st.floats(0, 1000),
)
contracts = st.builds(Contract, st.integers(1_000, 5_000_000), st.integers(1, 40), st.sampled_from(tuple(OnStall)))
worlds = st.builds(
    World,
    memory_bytes=st.integers(1 * MIB, 4096 * MIB),
    hot_bytes=st.integers(0, 2048 * MIB),
    bytes_per_second=st.floats(0, 8e9),
    link_bytes_per_second=st.floats(1e6, 8e9),
    round_us=st.integers(1_000, 500_000),
    freeze_us=st.integers(1_000, 500_000),
    restore_us=st.integers(1_000, 1_000_000),
)


def history(*dirty_units: float) -> list[Round]:
    """Rounds over 100 MiB a second, each with so many times 10 MiB dirtied in 30 s; the first sends everything.

    What is dirty by a freeze is about what it was by the last round: a unit is 100 ms of downtime.
    """
    sizes = [256 * MIB, *(round(units * STEP_BYTES) for units in dirty_units)]
    return [
        Round(number, size, size, round(size * 1e6 / (100 * MIB)), 1_000, 30_000_000 if number > 1 else 0)
        for number, size in enumerate(sizes, 1)
    ]


def asked(rounds: list[Round], on_stall: OnStall = OnStall.REFUSE, costs: Costs = FREE) -> Decision:
    return decide(rounds, Contract(200_000, 30, on_stall), costs)


@given(rounds_of_any_kind, contracts, costs_of_any_kind, st.none() | st.integers(0, 60_000_000))
def test_nothing_is_frozen_above_the_wish_unless_the_user_said_freeze(
    rounds: list[Round], contract: Contract, costs: Costs, time_left_us: int | None
) -> None:
    decision = decide(rounds, contract, costs, time_left_us=time_left_us, speed_percent=rounds[-1].speed_percent)
    if decision.action is Action.FREEZE and contract.on_stall is not OnStall.FREEZE:
        assert decision.prediction.downtime_us <= contract.max_downtime_us
    if decision.action is Action.THROTTLE:
        assert contract.on_stall is OnStall.THROTTLE
        assert decision.throttle_to_percent in STEPS_PERCENT
    if decision.action is Action.REFUSE:
        assert contract.on_stall is not OnStall.FREEZE
        message, hint = explain(decision, contract)
        assert message and "--max-downtime" in hint
    if len(rounds) >= contract.max_rounds:
        assert decision.action in (Action.FREEZE, Action.REFUSE)


@given(worlds, contracts)
def test_it_ends_within_the_rounds_allowed(world: World, contract: Contract) -> None:
    decision = world.run(contract)
    assert len(world.rounds) <= contract.max_rounds
    if contract.on_stall is OnStall.FREEZE:
        assert decision.action is Action.FREEZE


@given(st.integers(1 * MIB, 4096 * MIB), st.floats(1e7, 8e9))
def test_a_workload_that_does_not_write_is_frozen_after_the_second_round(memory_bytes: int, link: float) -> None:
    world = World(memory_bytes=memory_bytes, hot_bytes=0, link_bytes_per_second=link)
    assert world.run(Contract(200_000), world.true_costs()).action is Action.FREEZE
    assert len(world.rounds) == 2


def test_one_round_is_never_enough_while_another_may_be_made() -> None:
    tiny = [Round(1, 1 * MIB, 1 * MIB, 1_000, 500, 0)]
    assert asked(tiny).action is Action.ANOTHER_ROUND
    assert decide(tiny, Contract(max_rounds=1), FREE).action is Action.FREEZE


def test_rounds_that_help_are_followed_by_another() -> None:
    assert asked(history(20, 15, 10, 7, 5)).action is Action.ANOTHER_ROUND


def test_a_prediction_that_fits_freezes() -> None:
    decision = asked(history(20, 5, 1.5, 1.5, 1.5))
    assert decision.action is Action.FREEZE
    assert decision.prediction.downtime_us <= 200_000


def test_no_new_minimum_for_some_rounds_is_a_stall() -> None:
    assert asked(history(10, 10, 10)).action is Action.ANOTHER_ROUND
    decision = asked(history(10, 10, 10, 10))
    assert decision.action is Action.REFUSE
    assert decision.best_us == pytest.approx(1_000_000, rel=0.05)


def test_gains_that_are_too_small_are_none() -> None:
    assert asked(history(10, 9.9, 9.8, 9.7)).action is Action.REFUSE


def test_an_oscillating_workload_is_frozen_at_a_local_minimum() -> None:
    swinging = history(20, 10, 20, 10, 20, 10, 20)
    assert asked(swinging, OnStall.FREEZE).action is Action.ANOTHER_ROUND
    assert asked([*swinging, dataclasses.replace(swinging[2], number=9)], OnStall.FREEZE).action is Action.FREEZE


@given(st.integers(2, 5), st.floats(2, 10))
def test_whatever_the_period_it_freezes_near_the_best_of_the_last_rounds(period: int, swing: float) -> None:
    world = World(
        hot_bytes=200 * MIB,
        bytes_per_second=100 * MIB,
        link_bytes_per_second=100 * MIB,
        burst=lambda number: swing if number % period else 1.0,
    )
    decision = world.run(Contract(100_000, 60, OnStall.FREEZE), world.true_costs())
    assert decision.action is Action.FREEZE
    downtimes = [
        decide(world.rounds[: n + 1], Contract(), world.true_costs()).prediction.downtime_us
        for n in range(len(world.rounds))
    ]
    assert downtimes[-1] <= 1.11 * min(downtimes[-6:])


def test_a_stalled_workload_with_the_user_s_leave_is_frozen() -> None:
    decision = asked(history(10, 10, 10, 10), OnStall.FREEZE)
    assert decision.action is Action.FREEZE
    assert decision.prediction.downtime_us > 200_000


def test_costs_that_no_round_lowers_refuse_at_once() -> None:
    costs = Costs(256 * MIB, 100_000, 150_000, 0.0, 3)
    decision = asked(history(1), costs=costs)
    assert decision.action is Action.REFUSE
    assert "alone" in decision.reason
    assert decision.remedy is not None
    assert decision.remedy.bandwidth_bytes_per_second is None


def test_a_deadline_that_leaves_no_round_ends_it() -> None:
    rounds = history(20, 15, 10)
    contract = Contract(200_000)
    assert decide(rounds, contract, FREE, time_left_us=60_000_000).action is Action.ANOTHER_ROUND
    decision = decide(rounds, contract, FREE, time_left_us=1_000_000)
    assert decision.action is Action.REFUSE
    assert "time allowed" in decision.reason
    assert decide(rounds, Contract(200_000, 30, OnStall.FREEZE), FREE, time_left_us=1_000_000).action is Action.FREEZE


def test_the_remedies_would_do() -> None:
    world = World(bytes_per_second=2000 * MIB, hot_bytes=200 * MIB)
    contract = Contract(400_000)
    decision = world.run(contract, world.true_costs())
    assert decision.action is Action.REFUSE and decision.remedy is not None
    remedy = decision.remedy
    wide = World(
        bytes_per_second=2000 * MIB, hot_bytes=200 * MIB, link_bytes_per_second=remedy.bandwidth_bytes_per_second or 0
    )
    assert wide.run(contract, wide.true_costs()).action is Action.FREEZE
    patient = World(bytes_per_second=2000 * MIB, hot_bytes=200 * MIB)
    assert patient.run(Contract(remedy.max_downtime_us), patient.true_costs()).action is Action.FREEZE


def test_the_refusal_in_words() -> None:
    decision = asked(history(10, 10, 10, 10))
    message, hint = explain(decision, Contract(200_000))
    assert message == (
        "The workload would stand still for about 974 ms, longer than the 200 ms wished for: "
        "the last 3 rounds did not help, and 100 MiB would be left to send"
    )
    assert hint == (
        "What would do: --max-downtime 1200ms, or a link that carries 600 MiB/s (now 100 MiB/s). "
        "`--on-stall freeze` takes the longer pause."
    )


def test_a_throttle_is_set_and_seen_through() -> None:
    world = World(bytes_per_second=800 * MIB, hot_bytes=200 * MIB)
    decision = world.run(Contract(300_000, 30, OnStall.THROTTLE), world.true_costs())
    assert decision.action is Action.FREEZE
    assert world.speed_percent in STEPS_PERCENT
    _, _, downtime_us = world.freeze()
    assert downtime_us <= 300_000 * 1.1


def test_a_throttle_that_does_not_suffice_refuses() -> None:
    world = World(bytes_per_second=1e12, hot_bytes=200 * MIB)
    decision = world.run(Contract(300_000, 30, OnStall.THROTTLE), world.true_costs())
    assert decision.action is Action.REFUSE
    assert world.speed_percent == STEPS_PERCENT[-1]
    assert "10 %" in decision.reason


def test_a_throttle_just_set_is_given_a_round() -> None:
    rounds = history(10, 10, 10, 10)
    decision = decide(rounds, Contract(200_000, 30, OnStall.THROTTLE), FREE, speed_percent=60)
    assert decision.action is Action.ANOTHER_ROUND


@pytest.mark.parametrize(
    ("now", "needed", "step"),
    [(100, None, 80), (100, 85, 80), (100, 50, 40), (60, 50, 40), (60, 5, 40), (10, 5, None), (20, None, 10)],
)
def test_steps_of_a_throttle(now: int, needed: int | None, step: int | None) -> None:
    assert next_step(now, needed) == step


def test_postcopy_is_refused_in_preflight() -> None:
    assert refusal(Contract(on_stall=OnStall.POSTCOPY)) is not None
    assert all(refusal(Contract(on_stall=each)) is None for each in OnStall if each is not OnStall.POSTCOPY)


def test_the_prediction_is_near_the_truth_once_there_is_experience() -> None:
    dice = random.Random(4)
    outcomes: list[Outcome] = []
    misses = []
    for _ in range(12):
        world = World(noise=lambda: dice.uniform(0.9, 1.1))
        decision = world.run(Contract(400_000), outcomes=outcomes)
        assert decision.action is Action.FREEZE
        downtime_us, outcome = world.outcome()
        misses.append(abs(decision.prediction.downtime_us / downtime_us - 1))
        outcomes.append(outcome)
    assert max(misses[1:]) < 0.3
