"""Two agents that migrate towards each other at the same time: all is moved or refused, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import dataclasses

from phaul.lab.fake_machine import TreeState
from phaul.migration.facts import HostFacts
from phaul.rpc.v1 import agent_pb2, facts_pb2
from tests.component.conftest import PID, Pair, Side, tree

THERE = range(5000, 5004)  # from `source` to `destination`
BACK = range(6000, 6004)
END_SECONDS = 60.0
ROOM_FOR_ONE_BYTES = 200 << 20  # a workload of a few pages is promised 128 MiB and a bit


async def migrate(source: Side, destination: Side, pid: int) -> agent_pb2.Finished:
    """Move one workload; give how it ended."""
    request = facts_pb2.MigrationRequest(root_pid=pid, destination=destination.target)
    migration_id = await source.client.start(request)
    events = [event async for event in source.client.watch(migration_id)]
    return events[-1].finished


async def all_at_once(pair: Pair) -> dict[int, agent_pb2.Finished]:
    """Begin all migrations in both directions; give how each ended, by PID."""
    here, there = pair.source, pair.destination
    for pids, side in ((THERE, here), (BACK, there)):
        for pid in pids:
            side.machine.trees[pid] = tree(pid)
    moves = {pid: migrate(here, there, pid) for pid in THERE} | {pid: migrate(there, here, pid) for pid in BACK}
    async with asyncio.timeout(END_SECONDS):
        ended = await asyncio.gather(*moves.values())
    return dict(zip(moves, ended, strict=True))


def leave_room_for_one(side: Side, facts: HostFacts) -> None:
    """Let a host have memory for no more than one that comes in."""
    small = dataclasses.replace(facts, memory_available_bytes=ROOM_FOR_ONE_BYTES)

    async def describe() -> HostFacts:
        return small

    arrivals = side.server._arrivals
    arrivals._host = dataclasses.replace(arrivals._host, describe=describe)


def check_where_each_runs(pair: Pair, ended: dict[int, agent_pb2.Finished]) -> None:
    """Moved or not: one copy of each, where its outcome says."""
    for pid, finished in ended.items():
        began, other = (pair.source, pair.destination) if pid in THERE else (pair.destination, pair.source)
        moved = finished.outcome == agent_pb2.OUTCOME_COMPLETED
        assert pair.running_copies(pid) == 1
        assert (other if moved else began).machine.state(pid) is TreeState.RUNNING


async def test_all_of_them_arrive(pair: Pair) -> None:
    ended = await all_at_once(pair)
    assert [each.error.message for each in ended.values() if each.outcome != agent_pb2.OUTCOME_COMPLETED] == []
    check_where_each_runs(pair, ended)


async def test_with_room_for_one_on_each_host_the_others_are_refused(pair: Pair) -> None:
    for side in (pair.source, pair.destination):
        leave_room_for_one(side, await side.server._host.describe())
    ended = await all_at_once(pair)
    check_where_each_runs(pair, ended)
    for pids in (THERE, BACK):
        outcomes = [ended[pid] for pid in pids]
        assert any(each.outcome == agent_pb2.OUTCOME_COMPLETED for each in outcomes)
        others = [each for each in outcomes if each.outcome != agent_pb2.OUTCOME_COMPLETED]
        assert all("not enough memory" in each.error.message for each in others), others
        assert others, "there was room for all"
    refused = next(pid for pid in THERE if ended[pid].outcome != agent_pb2.OUTCOME_COMPLETED)
    assert (await migrate(pair.source, pair.destination, refused)).outcome == agent_pb2.OUTCOME_COMPLETED
    assert pair.running_copies(PID) == 1
