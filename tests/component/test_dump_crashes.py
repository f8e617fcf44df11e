"""Agents that are killed in the middle of a dump or a restore: what the next one makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from phaul.agent.client import AgentClient
from phaul.agent.store_peer import StorePeer
from phaul.lab.fake_machine import TreeState
from phaul.migration.arrivals import Arrivals
from phaul.migration.peer import PageChannel, Reservation
from phaul.rpc.v1 import agent_pb2
from phaul.store import directory as store
from tests.component.conftest import PID, Pair, tree
from tests.component.dumping import dumped, request, restore
from tests.component.in_doubt import SOON_SECONDS, Agent, Link


class MortalAgent(Agent):
    """One whose directories, too, are out of its reach once it was killed."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("a", base, Link())
        self.removed: list[Path] = []
        self._peers: list[StorePeer] = []
        prepare, remove = StorePeer.prepare, store.remove

        async def prepared(peer: StorePeer, reservation: Reservation) -> PageChannel:
            self._peers.append(peer)
            self._channels.append(await prepare(peer, reservation))
            return self._channels[-1]

        def removing(directory: Path, migration_id: str) -> None:
            self.machine.act("store.remove")
            self.removed.append(directory)
            remove(directory, migration_id)

        monkeypatch.setattr(StorePeer, "prepare", prepared)
        monkeypatch.setattr(store, "remove", removing)

    async def kill(self) -> None:
        await super().kill()
        for peer in self._peers:
            await peer.close()

    async def dies_at(self, act: str, *, after: Callable[[], None] = lambda: None) -> asyncio.Event:
        """Have it die as it does something; the event is set then."""
        reached = asyncio.Event()

        def die(name: str) -> None:
            if name == act:
                after()
                reached.set()
                self.machine.agent_alive = lambda: False
                self.machine.act("")

        self.machine.fault = die
        return reached

    async def again(self, reached: asyncio.Event) -> None:
        """Start another once it has died."""
        async with asyncio.timeout(SOON_SECONDS):
            await reached.wait()
        self.machine.fault = lambda _: None
        await self.kill()
        await self.start()


@pytest.fixture
async def mortal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MortalAgent]:
    agent = MortalAgent(tmp_path / "agent", monkeypatch)
    agent.machine.trees[PID] = tree()
    await agent.start()
    yield agent
    await agent.kill()


@pytest.mark.parametrize(
    ("act", "leave_running"),
    [
        ("engine.dump", False),
        ("engine.dump", True),
        ("workload.differing", False),
        ("workload.differing", True),
        ("engine.resume", True),
    ],
)
async def test_an_agent_that_dies_in_a_dump_leaves_the_workload(
    mortal: MortalAgent, tmp_path: Path, act: str, leave_running: bool
) -> None:
    path = tmp_path / "dump"
    reached = await mortal.dies_at(act)
    await mortal.client.start(request(path, leave_running=leave_running))
    await mortal.again(reached)
    async with asyncio.timeout(SOON_SECONDS):
        while path.exists():
            await asyncio.sleep(0.01)
    await mortal.wait_outcome(agent_pb2.OUTCOME_ROLLED_BACK)
    assert mortal.state is TreeState.RUNNING
    assert mortal.removed == [path]


async def test_an_agent_that_dies_past_commit_leaves_a_whole_dump(
    mortal: MortalAgent, pair: Pair, tmp_path: Path
) -> None:
    path = tmp_path / "dump"
    doomed = mortal.machine.trees[PID]

    def killed() -> None:
        doomed.state = TreeState.DEAD

    reached = await mortal.dies_at("tree.kill", after=killed)
    await mortal.client.start(request(path))
    await mortal.again(reached)
    await mortal.wait_outcome(agent_pb2.OUTCOME_COMPLETED)
    assert mortal.state is TreeState.DEAD
    assert (await restore(pair.destination, path))[-1].restored.pid == PID


@pytest.mark.parametrize("act", ["engine.restore", "held", "copy.run"])
async def test_an_agent_that_dies_in_a_restore(
    mortal: MortalAgent, pair: Pair, tmp_path: Path, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dump"
    await dumped(pair.source, path)
    mortal.machine.trees.clear()
    reached = await mortal.dies_at(act)

    async def held(*_: object) -> None:
        mortal.machine.act("held")

    if act == "held":
        monkeypatch.setattr(Arrivals, "resume", held)
    asking = asyncio.create_task(_asked(mortal.client, path))
    await mortal.again(reached)
    await asyncio.gather(asking, return_exceptions=True)
    if act != "copy.run":  # it was not decided that it runs
        await mortal.wait_outcome(agent_pb2.OUTCOME_ROLLED_BACK)
        assert mortal.state is TreeState.DEAD
    else:
        await mortal.wait_outcome(agent_pb2.OUTCOME_COMPLETED)
        assert mortal.state is TreeState.RUNNING
    async with asyncio.timeout(SOON_SECONDS):
        while list(mortal.rooms.iterdir()):
            await asyncio.sleep(0.01)
    assert path.exists()


async def _asked(client: AgentClient, path: Path) -> None:
    async for _ in client.restore_dump(agent_pb2.RestoreDumpRequest(directory=str(path))):
        pass
