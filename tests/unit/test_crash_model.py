"""I1 to I4 under every crash, lost message and repeated message that a plan of faults can bring about.

The first test walks every single fault at every step of a migration; the second lets hypothesis combine several. A
failing case prints its plan and its trace; `@example(plan)` reproduces it.
"""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phaul.lab.fake_machine import TreeState
from phaul.migration.arrivals import ASK_AGAIN_SECONDS, LEASE_SECONDS, Arrivals
from phaul.migration.lazy import LoadingState
from phaul.migration.recovery import Word
from tests.unit.crash_drivers import PID, Fault, ViolationError
from tests.unit.crash_world import SimHost, World

CASES = 10_000
SHOWN_STEPS = 150


def play(plan: dict[int, Fault], restart_after: list[int], *, lazily: bool = False) -> World:
    """Run one world; a violation shows how it came about. `lazily`: the copy runs before its pages are loaded."""
    world = World(plan, restart_after)
    try:
        with mock.patch("phaul.migration.lazy.helps", lambda *_: lazily):
            asyncio.run(world.run())
    except ViolationError as violation:
        steps = "\n".join(world.trace[:SHOWN_STEPS])
        raise AssertionError(
            f"{violation}\nplan {plan} restarts {restart_after} lazily {lazily}\n{steps}"
        ) from violation
    return world


def steps_without_faults(*, lazily: bool) -> int:
    return play({}, [], lazily=lazily).count


@pytest.mark.parametrize("lazily", [False, True])
def test_without_faults_it_completes(*, lazily: bool) -> None:
    world = play({}, [], lazily=lazily)
    loading = world.destination.machine.loading
    assert [each.state for each in loading.values()] == ([LoadingState.DONE] if lazily else [])
    assert world.destination.rooms == {}
    assert world.destination.machine.state(PID) is TreeState.RUNNING
    assert world.count > 40


def test_a_source_that_is_silent_is_asked_as_soon_as_its_lease_is_over() -> None:
    silent_seconds: dict[Any, float] = {}  # before it was asked for the first time
    ask = Arrivals._ask

    async def asked(self: Arrivals, incoming: Any) -> Word:
        silent_seconds.setdefault(self, (self._host.clock.monotonic_us() - incoming.heard_us) / 1e6)
        return await ask(self, incoming)

    step = World.step

    def slow_step(self: World, host: SimHost, name: str) -> Fault | None:
        self.now_seconds += 0.5
        return step(self, host, name)

    with mock.patch.object(Arrivals, "_ask", asked), mock.patch.object(World, "step", slow_step):
        for number in range(steps_without_faults(lazily=False)):
            play({number: Fault.PARTITION}, [])
    assert len(silent_seconds) > 5
    assert all(LEASE_SECONDS <= each < LEASE_SECONDS + 2 * ASK_AGAIN_SECONDS for each in silent_seconds.values())


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("fault", list(Fault))
def test_every_single_fault_at_every_step(fault: Fault, *, lazily: bool) -> None:
    for step in range(steps_without_faults(lazily=lazily)):
        for delay in (0, 3, 1000):
            play({step: fault}, [delay], lazily=lazily)


def test_an_agent_that_dies_with_its_criu_and_again_in_the_next_life() -> None:
    """The second copy may be one that no record names yet."""
    fault = Fault.KILL_DESTINATION_AND_CRIU
    for first in range(steps_without_faults(lazily=False)):
        for second in range(first + 1, first + 12):
            play({first: fault, second: fault}, [3, 3], lazily=False)


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    plan=st.dictionaries(st.integers(0, 110), st.sampled_from(Fault), max_size=6),
    restart_after=st.lists(st.integers(0, 40), max_size=6),
    lazily=st.booleans(),
)
def test_any_faults_together(plan: dict[int, Fault], restart_after: list[int], *, lazily: bool) -> None:
    play(plan, restart_after, lazily=lazily)
