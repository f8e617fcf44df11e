"""Lazy restore between two real agents: when it is used, what is shown, what stays until all is loaded, ways back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from phaul.errors import RestoreError
from phaul.lab.fake_machine import TreeState
from phaul.migration.lazy import Loading, LoadingState
from phaul.rpc.v1 import agent_pb2
from tests.component.conftest import PID, Pair
from tests.component.test_migration import outcome

SOON_SECONDS = 5.0


@pytest.fixture(autouse=True)
def helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the memory."""
    monkeypatch.setattr("phaul.migration.lazy.helps", lambda *_: True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def shown(pair: Pair) -> agent_pb2.MigrationSummary:
    (summary,) = await pair.destination.client.list_migrations()
    return summary


async def test_the_images_stay_and_status_speaks_of_it_until_all_is_loaded(pair: Pair) -> None:
    machine = pair.destination.machine
    machine.loads_at_once = False
    events = await pair.migrate()
    migration_id = events[0].migration_id
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED
    assert "engine.restore_lazily" in machine.acts
    assert "engine.restore" not in machine.acts
    assert machine.state(PID) is TreeState.RUNNING
    loading = (await shown(pair)).loading
    assert (loading.left_bytes, loading.total_bytes) == (len(machine.trees[PID].memory),) * 2
    await asyncio.sleep(0.2)
    assert (pair.destination.rooms / migration_id).exists()
    machine.finish_loading(migration_id)
    await until(lambda: not (pair.destination.rooms / migration_id).exists())
    assert not (await shown(pair)).HasField("loading")


async def test_a_workload_whose_pages_are_lost_is_ended(pair: Pair) -> None:
    machine = pair.destination.machine
    machine.loads_at_once = False
    migration_id = (await pair.migrate())[0].migration_id
    machine.loading[migration_id] = Loading(LoadingState.LOST, 4096, 8192)
    await until(lambda: machine.state(PID) is TreeState.DEAD)
    async with asyncio.timeout(SOON_SECONDS):
        while (await shown(pair)).outcome != agent_pb2.OUTCOME_LOST:
            await asyncio.sleep(0.01)
    assert (await shown(pair)).error.code == "LostError"
    assert (pair.destination.rooms / migration_id).exists()


@pytest.mark.parametrize("act", ["engine.loader", "loader.ready", "engine.restore_lazily"])
async def test_where_it_fails_the_copy_is_restored_eagerly(pair: Pair, act: str) -> None:
    machine = pair.destination.machine

    def fail(name: str) -> None:
        if name == act:
            raise RestoreError("on purpose")

    machine.fault = fail
    events = await pair.migrate()
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED, outcome(events).error
    assert "engine.restore" in machine.acts
    assert machine.loading == {}
    assert machine.state(PID) is TreeState.RUNNING
    await until(lambda: list(pair.destination.rooms.iterdir()) == [])


async def test_a_rollback_ends_the_loader(pair: Pair) -> None:
    def fail(name: str) -> None:
        if name == "engine.dump":
            raise OSError(5, "on purpose")

    pair.source.machine.fault = fail
    events = await pair.migrate()
    assert outcome(events).outcome == agent_pb2.OUTCOME_ROLLED_BACK
    assert "loader.close" in pair.destination.machine.acts
