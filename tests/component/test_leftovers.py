"""What crashes leave behind, found and removed by a real agent on a fake machine; what is still needed stays."""

from __future__ import annotations

import asyncio

from phaul.errors import DumpError
from phaul.lab.fake_machine import TreeState
from phaul.rpc.v1 import agent_pb2
from tests.component.conftest import ADDRESS, PID, Pair
from tests.component.test_migration import hang_at_restore, outcome

STRANGER = "0badcafe"


async def test_what_nobody_knows_of_is_found_and_removed(pair: Pair) -> None:
    side = pair.destination
    side.machine.fences[STRANGER] = (ADDRESS,)
    (side.rooms / STRANGER).mkdir(parents=True)
    found = await side.client.find_leftovers()
    assert {(each.kind, each.migration_id) for each in found} == {("fence", STRANGER), ("images", STRANGER)}
    assert side.machine.fences
    removed = await side.client.remove_leftovers()
    assert [each.problem for each in removed] == ["", ""]
    assert not side.machine.fences
    assert list(side.rooms.iterdir()) == []
    assert await side.client.find_leftovers() == ()


async def test_what_a_migration_under_way_has_is_left_alone(pair: Pair) -> None:
    reached = hang_at_restore(pair)
    migration_id = await pair.source.client.start(pair.request(ADDRESS))
    await reached.wait()
    for side in (pair.source, pair.destination):
        assert list(side.machine.fences) == [migration_id]
        side.machine.fences[STRANGER] = ()
        assert [each.migration_id for each in await side.client.remove_leftovers()] == [STRANGER]
        assert list(side.machine.fences) == [migration_id]
    assert (await pair.source.client.cancel(migration_id)).accepted
    events = [event async for event in pair.source.client.watch(migration_id)]
    assert outcome(events).outcome == agent_pb2.OUTCOME_ROLLED_BACK
    for side in (pair.source, pair.destination):
        assert await side.client.find_leftovers() == ()


async def test_what_could_not_be_undone_is_undone_again(pair: Pair) -> None:
    def fault(name: str) -> None:
        if name in ("engine.dump", "rooms.release", "network.unfence"):
            raise DumpError(f"{name} failed on purpose")

    pair.source.machine.fault = fault
    events = await pair.migrate(ADDRESS)
    assert outcome(events).error.code == "LeftoversError"
    (found,) = await pair.source.client.find_leftovers()
    assert (found.kind, found.migration_id) == ("migration", events[0].migration_id)
    assert pair.source.machine.fences
    pair.source.machine.fault = lambda _: None
    (removed,) = await pair.source.client.remove_leftovers()
    assert removed.problem == ""
    assert not pair.source.machine.fences
    assert list(pair.source.rooms.iterdir()) == []
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    assert await pair.source.client.find_leftovers() == ()


async def test_a_completed_migration_leaves_nothing(pair: Pair) -> None:
    await pair.migrate(ADDRESS)
    async with asyncio.timeout(10):
        for side in (pair.source, pair.destination):
            while await side.client.find_leftovers():
                await asyncio.sleep(0.02)
