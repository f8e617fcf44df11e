"""I1 to I4 under every crash, lost message and repeated message that a plan of faults can bring about.

The first test walks every single fault at every step of a migration; the second lets hypothesis combine several. A
failing case prints its plan and its trace; `@example(plan)` reproduces it.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phaul.lab.fake_machine import TreeState
from tests.unit.crash_drivers import PID, Fault, ViolationError
from tests.unit.crash_world import World

CASES = 10_000
SHOWN_STEPS = 150


def play(plan: dict[int, Fault], restart_after: list[int]) -> World:
    """Run one world; a violation shows how it came about."""
    world = World(plan, restart_after)
    try:
        asyncio.run(world.run())
    except ViolationError as violation:
        steps = "\n".join(world.trace[:SHOWN_STEPS])
        raise AssertionError(f"{violation}\nplan {plan} restarts {restart_after}\n{steps}") from violation
    return world


def steps_without_faults() -> int:
    return play({}, []).count


def test_without_faults_it_completes() -> None:
    world = play({}, [])
    assert world.destination.machine.state(PID) is TreeState.RUNNING
    assert world.count > 40


@pytest.mark.parametrize("fault", list(Fault))
def test_every_single_fault_at_every_step(fault: Fault) -> None:
    for step in range(steps_without_faults()):
        for delay in (0, 3, 1000):
            play({step: fault}, [delay])


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    plan=st.dictionaries(st.integers(0, 110), st.sampled_from(Fault), max_size=6),
    restart_after=st.lists(st.integers(0, 40), max_size=6),
)
def test_any_faults_together(plan: dict[int, Fault], restart_after: list[int]) -> None:
    play(plan, restart_after)
