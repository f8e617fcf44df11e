"""An agent that is there for one migration: it ends when it has nothing to do, and never while it holds a copy."""

# ruff: noqa: F811 - a fixture is imported and then asked for by its name
from __future__ import annotations

import asyncio

import pytest

from phaul.agent.server import AgentServer
from phaul.rpc.v1 import agent_pb2 as pb
from tests.component.conftest import Pair
from tests.component.in_doubt import QUIET_SECONDS, SOON_SECONDS, Agent, Two, two  # noqa: F401 - a fixture

LONG_SECONDS = 1000.0


def told_to_go() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def goes(server: AgentServer, seconds: float = QUIET_SECONDS + 1) -> bool:
    """Whether it would end, told that it may."""
    try:
        async with asyncio.timeout(seconds):
            await server.wait_idle(LONG_SECONDS, told_to_go())
    except TimeoutError:
        return False
    return True


def server_of(agent: Agent) -> AgentServer:
    assert agent._server is not None
    return agent._server


async def test_it_ends_after_a_while_or_at_once_when_told(two: Two) -> None:
    server = server_of(two.destination)
    async with asyncio.timeout(SOON_SECONDS):
        await server.wait_idle(0.2, asyncio.Event())
        await server.wait_idle(LONG_SECONDS, told_to_go())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(QUIET_SECONDS):
            await server.wait_idle(LONG_SECONDS, asyncio.Event())


@pytest.mark.parametrize("restarted", [False, True], ids=["the same agent", "restarted"])
async def test_it_stays_as_long_as_it_may_hold_the_only_copy(two: Two, restarted: bool) -> None:
    await two.migrate("Resume")
    if restarted:
        await two.destination.kill()
        await two.destination.start()
    assert not await goes(server_of(two.destination))
    two.heal()
    await two.source.wait_outcome(pb.OUTCOME_COMPLETED)
    await two.runs_only_on(two.destination)
    assert await goes(server_of(two.destination), SOON_SECONDS)


async def test_it_stays_until_all_pages_are_in_place(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phaul.migration.lazy.helps", lambda *_: True)
    pair.destination.machine.loads_at_once = False
    migration_id = (await pair.migrate())[0].migration_id
    assert not await goes(pair.destination.server)
    pair.destination.machine.finish_loading(migration_id)
    assert await goes(pair.destination.server, SOON_SECONDS)
