"""Two real agents in one process, on loopback, each around a fake machine (phaul/lab/fakes.py)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from phaul.agent.client import AgentClient
from phaul.agent.server import AgentServer
from phaul.config import AgentConfig
from phaul.lab.fake_engine import FakeEngine
from phaul.lab.fake_machine import PAGE_BYTES, FakeMachine, FakeTree
from phaul.lab.fakes import fake_host
from phaul.migration.facts import AddressFacts
from phaul.rpc.v1 import agent_pb2, facts_pb2

PID = 4242
ADDRESS = AddressFacts("10.9.9.9", 24, "eth0")


@dataclass
class Side:
    """One host of the pair."""

    machine: FakeMachine
    server: AgentServer
    client: AgentClient
    rooms: Path
    engine: FakeEngine

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server.peer_port}"


@dataclass
class Pair:
    """Both hosts; the tree PID runs on `source`."""

    source: Side
    destination: Side

    def running_copies(self, pid: int = PID) -> int:
        return [self.source.machine.state(pid), self.destination.machine.state(pid)].count("running")  # type: ignore[arg-type]

    def request(self, *addresses: AddressFacts, pid: int = PID) -> facts_pb2.MigrationRequest:
        return facts_pb2.MigrationRequest(
            root_pid=pid,
            destination=self.destination.target,
            addresses=[
                facts_pb2.AddressRequest(address=each.address, prefix_length=each.prefix_length) for each in addresses
            ],
        )

    async def migrate(self, *addresses: AddressFacts) -> list[agent_pb2.MigrationEvent]:
        migration_id = await self.source.client.start(self.request(*addresses))
        return [event async for event in self.source.client.watch(migration_id)]


def tree(pid: int = PID, pages: int = 700) -> FakeTree:
    return FakeTree(pid, os.urandom(pages * PAGE_BYTES))


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        sides = []
        for name in ("a", "b"):
            machine = FakeMachine(name)
            base = tmp_path / name
            config = AgentConfig(
                socket=base / "run" / "agent.sock",
                listen="127.0.0.1:0",
                page_port=0,
                runtime_dir=base / "run",
                state_dir=base / "state",
            )
            rooms = base / "rooms"
            host = fake_host(machine, rooms)
            server = await stack.enter_async_context(AgentServer(config, host))
            client = await stack.enter_async_context(AgentClient(config.socket))
            sides.append(Side(machine, server, client, rooms, cast("FakeEngine", host.engine)))
        sides[0].machine.trees[PID] = tree()
        sides[0].machine.local.append(ADDRESS)
        yield Pair(*sides)
