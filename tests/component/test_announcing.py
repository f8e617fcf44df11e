"""Announcements: said several times where a workload has arrived, and not once more when it has moved on."""

from __future__ import annotations

import asyncio

from phaul.migration.wire import announce_again_seconds
from phaul.rpc.v1 import agent_pb2, facts_pb2
from tests.component.conftest import ADDRESS, PID, Pair


async def test_who_has_moved_on_is_not_announced_where_it_was(pair: Pair) -> None:
    here, there = pair.source, pair.destination
    asked = pair.request(ADDRESS)
    assert (await pair.migrate(ADDRESS))[-1].finished.outcome == agent_pb2.OUTCOME_COMPLETED
    back = facts_pb2.MigrationRequest(root_pid=PID, destination=here.target, addresses=asked.addresses)
    migration_id = await there.client.start(back)
    events = [event async for event in there.client.watch(migration_id)]
    assert events[-1].finished.outcome == agent_pb2.OUTCOME_COMPLETED, events[-1].finished.error
    await asyncio.sleep(sum(announce_again_seconds()) + 0.2)
    said_there = [act for act in there.machine.acts if act in ("network.announce", "network.remove")]
    assert said_there[-1] == "network.remove", "it is announced where it was"
    assert here.machine.acts.count("network.announce") == 1 + len(announce_again_seconds())
