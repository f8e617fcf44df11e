"""Two agents that can be killed, started again and cut off from each other, for tests of what a person may decide."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phaul.agent.client import AgentClient
from phaul.agent.destination import Destination, parse_destination
from phaul.agent.peer_client import GrpcPeer
from phaul.agent.server import AgentServer
from phaul.config import AgentConfig
from phaul.errors import UnreachableError
from phaul.lab.fake_machine import FakeMachine, TreeState
from phaul.lab.fakes import fake_host
from phaul.migration import resuming, settlement
from phaul.migration.peer import PageChannel, Reservation
from phaul.rpc.v1 import agent_pb2 as pb
from phaul.rpc.v1 import facts_pb2
from tests.component.conftest import ADDRESS, PID, tree

SOON_SECONDS = 15.0
QUIET_SECONDS = 0.3  # in which a host that may not run anything shows that it does not

SAFE, UNSAFE, IMPOSSIBLE = pb.SAFETY_SAFE, pb.SAFETY_UNSAFE, pb.SAFETY_IMPOSSIBLE


@dataclass
class Link:
    """What is between the two agents. It breaks with the call `cut_at`; `blocked` names one that alone is lost."""

    cut: bool = False
    cut_at: str = ""
    blocked: str = ""


class CutStub:
    """A stub whose calls do not get through a link that is cut."""

    def __init__(self, link: Link, stub: Any) -> None:
        self._link, self._stub = link, stub

    def __getattr__(self, name: str) -> Any:
        if name == self._link.cut_at:
            self._link.cut = True
        if self._link.cut or name == self._link.blocked:
            raise UnreachableError("the link is cut")
        return getattr(self._stub, name)


class CutPeer(GrpcPeer):
    """The other agent, over a link."""

    def __init__(self, link: Link, destination: Destination, channels: list[PageChannel]) -> None:
        super().__init__(destination)
        self._stub = CutStub(link, self._stub)  # type: ignore[assignment]
        self._channels = channels

    async def prepare(self, reservation: Reservation) -> PageChannel:
        channel = await super().prepare(reservation)
        self._channels.append(channel)
        return channel


class Agent:
    """One host whose agent can be killed and started again; its port and state stay."""

    def __init__(self, name: str, base: Path, link: Link) -> None:
        self.machine = FakeMachine(name)
        self.rooms = base / "rooms"
        self._base = base
        self._link = link
        self._port = 0
        self._server: AgentServer | None = None
        self._client: AgentClient | None = None
        self._channels: list[PageChannel] = []

    @property
    def client(self) -> AgentClient:
        assert self._client is not None
        return self._client

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        self.machine.agent_alive = lambda: True
        config = AgentConfig(
            socket=self._base / "agent.sock",
            listen=f"127.0.0.1:{self._port}",
            page_port=0,
            runtime_dir=self._base / "run",
            state_dir=self._base / "state",
        )
        host = fake_host(self.machine, self.rooms)
        server = AgentServer(config, host, self._connect)
        self._server = await server.__aenter__()
        self._port = server.peer_port
        self._client = await AgentClient(config.socket).__aenter__()

    def _connect(self, typed: str) -> CutPeer:
        return CutPeer(self._link, parse_destination(typed), self._channels)

    async def kill(self) -> None:
        """Its end as SIGKILL makes it: from now on it does nothing, and each CRIU rolls back."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self.machine.agent_alive = lambda: False
        self.machine.kill_agent()
        await self.client.__aexit__(None, None, None)
        tasks = [each.task for each in server._migrations._migrations.values() if each.task is not None]
        tasks += [each.lease for each in server._arrivals._incoming.values() if each.lease is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server._settlers.close()
        await server._person_server.stop(0)
        await server._peer_server.stop(0)
        await server._people.close()
        await server._listener.close()
        if server._watch is not None:
            server._watch.cancel()
        for channel in self._channels:
            channel.close()

    @property
    def state(self) -> TreeState:
        return self.machine.state(PID)

    async def summary(self) -> pb.MigrationSummary:
        (summary,) = await self.client.list_migrations()
        return summary

    async def wait_outcome(self, wanted: pb.Outcome.ValueType, message: str = "") -> pb.MigrationSummary:
        async with asyncio.timeout(SOON_SECONDS):
            while (summary := await self.summary()).outcome != wanted or message not in summary.error.message:
                await asyncio.sleep(0.02)
        return summary


class Two:
    """Source and destination, and the tree PID on the source, under ADDRESS."""

    def __init__(self, base: Path) -> None:
        self.link = Link()
        self.source, self.destination = Agent("a", base / "a", self.link), Agent("b", base / "b", self.link)
        self.source.machine.trees[PID] = tree()
        self.source.machine.local.append(ADDRESS)
        self.id = ""

    async def migrate(self, cut_at: str) -> None:
        """Migrate until the link breaks, with this call of the source."""
        self.link.cut_at = cut_at
        address = facts_pb2.AddressRequest(address=ADDRESS.address, prefix_length=ADDRESS.prefix_length)
        request = facts_pb2.MigrationRequest(root_pid=PID, destination=self.destination.target, addresses=[address])
        self.id = await self.source.client.start(request)
        async with asyncio.timeout(SOON_SECONDS):
            while not self.link.cut:
                await asyncio.sleep(0.005)

    def heal(self) -> None:
        self.link.cut_at, self.link.cut = "", False

    async def safeties(self, agent: Agent) -> tuple[int, int]:
        doubt = await agent.client.describe_doubt(self.id)
        assert [option.choice for option in doubt.options] == [pb.CHOICE_RESUME_HERE, pb.CHOICE_ABORT_HERE]
        assert all(option.reason for option in doubt.options)
        return doubt.options[0].safety, doubt.options[1].safety

    async def runs_only_on(self, agent: Agent, seconds: float = QUIET_SECONDS) -> None:
        other = self.source if agent is self.destination else self.destination
        async with asyncio.timeout(seconds + 1):
            for _ in range(round(seconds / 0.02)):
                assert agent.state is TreeState.RUNNING
                assert other.state is TreeState.DEAD
                await asyncio.sleep(0.02)
        assert (agent.machine.local, other.machine.local) == ([ADDRESS], [])

    async def clean(self) -> None:
        async with asyncio.timeout(SOON_SECONDS):
            for agent in (self.source, self.destination):
                while agent.machine.fences or (agent.rooms.exists() and list(agent.rooms.iterdir())):
                    await asyncio.sleep(0.02)


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    for module in (settlement, resuming):
        monkeypatch.setattr(module, "BACKOFF_SECONDS", (0.05,))
    hosts = Two(tmp_path)
    async with AsyncExitStack() as stack:
        for agent in (hosts.source, hosts.destination):
            await agent.start()
            stack.push_async_callback(agent.kill)
        yield hosts
