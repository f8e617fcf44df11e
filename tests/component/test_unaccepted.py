"""Connections that nobody has accepted: the destination is told of them, and tells their clients once the copy runs."""

from __future__ import annotations

import asyncio

import pytest

from phaul.errors import RestoreError
from phaul.migration.facts import ConnectionFacts
from phaul.rpc.v1 import agent_pb2
from tests.component.conftest import ADDRESS, PID, Pair

LISTENER = ConnectionFacts("tcp", "listen", "0.0.0.0", 80, "0.0.0.0", 0, unaccepted=1)
WAITING = ConnectionFacts("tcp", "established", ADDRESS.address, 80, "203.0.113.1", 5000)
HALF = ConnectionFacts("tcp", "syn_recv", ADDRESS.address, 80, "203.0.113.2", 5001)
ELSEWHERE = ConnectionFacts("tcp", "established", "10.9.9.1", 80, "203.0.113.1", 5002)


@pytest.fixture
def waited_for(pair: Pair) -> Pair:
    tree = pair.source.machine.trees[PID]
    tree.connections, tree.unaccepted = (LISTENER,), (WAITING, HALF, ELSEWHERE)
    return pair


async def migrate(pair: Pair) -> agent_pb2.Finished:
    request = pair.request(ADDRESS)
    request.drop_unaccepted = True
    migration_id = await pair.source.client.start(request)
    events = [event async for event in pair.source.client.watch(migration_id)]
    return events[-1].finished


@pytest.mark.parametrize("fails_first", [False, True])
async def test_their_clients_are_told_when_the_copy_runs(waited_for: Pair, fails_first: bool) -> None:
    there = waited_for.destination.machine
    left = ["copy.run"] if fails_first else []

    def fault(name: str) -> None:
        if name in left:
            left.remove(name)
            raise RestoreError("the copy was killed on purpose")

    there.fault = fault
    finished = await migrate(waited_for)
    assert finished.outcome == agent_pb2.OUTCOME_COMPLETED, finished.error
    # Not the one whose address stays on the source, whose kernel says it itself.
    assert set(there.dismissed) == {WAITING, HALF}
    told = [act for act in there.acts if act in ("copy.run", "network.unfence", "network.announce", "network.dismiss")]
    assert told[-4:] == ["copy.run", "network.unfence", "network.announce", "network.dismiss"]
    await asyncio.sleep(0.5)
    assert len(there.dismissed) > 2  # a packet may be lost


async def test_nobody_is_told_of_a_migration_that_is_rolled_back(waited_for: Pair) -> None:
    def fault(name: str) -> None:
        if name == "network.remove":
            raise RestoreError("on purpose")

    waited_for.source.machine.fault = fault
    finished = await migrate(waited_for)
    assert finished.outcome == agent_pb2.OUTCOME_ROLLED_BACK, finished.error
    assert waited_for.destination.machine.dismissed == []
    assert waited_for.source.machine.dismissed == []
