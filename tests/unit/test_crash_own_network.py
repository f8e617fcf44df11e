"""The crash model with a workload that has a network namespace of its own: nobody answers for a copy that is elsewhere.

As test_crash_model.py, whose world this is; each agent dies at every step, alone or with its CRIU.
"""

from __future__ import annotations

import asyncio

import pytest

from phaul.lab.fake_machine import TreeState
from phaul.migration.facts import NetworkFacts
from tests.unit.crash_drivers import PID, Fault, ViolationError
from tests.unit.crash_world import LEFT_OUT, NETWORK, World

SHOWN_STEPS = 150
DEATHS = [Fault.KILL_SOURCE, Fault.KILL_DESTINATION, Fault.KILL_DESTINATION_AND_CRIU]
RESTARTS = (0, 1000)  # steps after a death: at once, or when all others have come to an end


def play(plan: dict[int, Fault], restart_after: list[int], network: NetworkFacts = NETWORK) -> World:
    """Run one world; a violation shows how it came about."""
    world = World(plan, restart_after, own_network=network)
    try:
        asyncio.run(world.run())
    except ViolationError as violation:
        steps = "\n".join(world.trace[:SHOWN_STEPS])
        raise AssertionError(f"{violation}\nplan {plan} restarts {restart_after}\n{steps}") from violation
    return world


def test_without_faults_it_completes() -> None:
    world = play({}, [])
    assert world.destination.machine.state(PID) is TreeState.RUNNING
    assert world.destination.machine.links and not world.source.machine.links


@pytest.mark.parametrize("network", [NETWORK, LEFT_OUT], ids=["veth", "ipvlan"])
@pytest.mark.parametrize("fault", DEATHS)
def test_every_single_death_at_every_step(fault: Fault, network: NetworkFacts) -> None:
    for step in range(play({}, [], network).count):
        for delay in RESTARTS:
            play({step: fault}, [delay], network)
