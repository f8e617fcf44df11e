"""Two real agents with certificates: what `conftest.pair` is, over TLS. Used by test_trust*.py."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from phaul.agent.client import AgentClient
from phaul.agent.server import AgentServer
from phaul.agent.trust import trust_directory
from phaul.config import DEFAULT_POLICY, AgentConfig
from phaul.lab.fake_engine import FakeEngine
from phaul.lab.fake_machine import FakeMachine
from phaul.lab.fakes import fake_host
from phaul.trust.authority import Authority
from phaul.trust.connections import utc_now
from phaul.trust.store import TrustStore
from tests.component.conftest import ADDRESS, PID, Pair, Side, tree

LOOPBACK = "127.0.0.1"
PORT = 7428
HOSTS = ("a", "b")


def clock(days: float) -> Callable[[], datetime.datetime]:
    """One that is wrong."""
    return lambda: utc_now() + datetime.timedelta(days=days)


@dataclass
class Trusts:
    """The files of trust below a directory, host by host; the authority is on a host of its own."""

    base: Path
    ports: dict[str, int] = field(default_factory=dict)  # of agents whose port must be known beforehand

    @property
    def authority(self) -> Authority:
        return Authority(TrustStore(self.base / "authority"))

    def config(self, name: str) -> AgentConfig:
        base = self.base / name
        policy = base / "policy.toml"
        return AgentConfig(
            policy=policy if policy.exists() else DEFAULT_POLICY,
            socket=base / "agent.sock",
            listen=f"{LOOPBACK}:{self.ports.get(name, 0)}",
            page_port=0,
            runtime_dir=base,
            state_dir=base / "state",
        )

    def store(self, name: str) -> TrustStore:
        return TrustStore(trust_directory(self.config(name)))

    def give(
        self,
        name: str,
        also: Sequence[str] = (LOOPBACK,),
        *,
        authority: Authority | None = None,
        days: float = 7,
    ) -> None:
        store = self.store(name)
        pem, trust_list = (authority or self.authority).issue(name, PORT, list(also), days)
        store.put_host(pem)
        store.put_list(trust_list)

    def other_authority(self) -> Authority:
        authority = Authority(TrustStore(self.base / "other"))
        authority.create("other", PORT, [])
        return authority


def make_trusts(base: Path) -> Trusts:
    """An authority, and a certificate for both hosts."""
    made = Trusts(base)
    made.authority.create("authority", PORT, [])
    for name in HOSTS:
        made.give(name)
    return made


@asynccontextmanager
async def trusting_pair(trusts: Trusts) -> AsyncIterator[Pair]:
    """Run two agents with the files that they have now."""
    async with AsyncExitStack() as stack:
        sides = []
        for name in HOSTS:
            config = trusts.config(name)
            machine = FakeMachine(name)
            rooms = trusts.base / name / "rooms"
            host = fake_host(machine, rooms)
            server = await stack.enter_async_context(AgentServer(config, host))
            client = await stack.enter_async_context(AgentClient(config.socket))
            sides.append(Side(machine, server, client, rooms, cast("FakeEngine", host.engine)))
        sides[0].machine.trees[PID] = tree()
        sides[0].machine.local.append(ADDRESS)
        yield Pair(*sides)
