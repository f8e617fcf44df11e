"""A made-up machine: the trees, addresses and fences of a host, which outlive its agent and tell the truth about it.

Used by `lab.fakes` (drivers) and `lab.fake_engine`; whoever injects faults does it here.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from phaul.migration.facts import AddressFacts, ConnectionFacts, HookFacts, LinkFacts, NetworkFacts
from phaul.migration.hooks import HookEnd
from phaul.migration.journal import Data
from phaul.migration.lazy import Loading, LoadingState

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Held(Protocol):
    """A gate that a CRIU holds."""

    def abandon(self) -> None:
        """Its agent has died: the socket closes and CRIU rolls back."""
        ...

    def orphan(self) -> None:
        """Agent and CRIU have died together."""
        ...


class TreeState(StrEnum):
    """How one copy of a tree stands."""

    RUNNING = "running"
    FROZEN = "frozen"
    UNFINISHED = "unfinished"  # restored, and left by a CRIU that was killed before it let it run
    DEAD = "dead"


@dataclass(slots=True, eq=False)
class FakeTree:
    """One copy of a workload on one host. `memory` is what must arrive."""

    pid: int
    memory: bytes
    connections: tuple[ConnectionFacts, ...] = ()
    unaccepted: tuple[ConnectionFacts, ...] = ()  # that only the kernel knows of
    state: TreeState = TreeState.RUNNING
    tracked: bytes | None = None  # the memory at the last pre-dump: only what differs from it is sent
    while_sent: Callable[[FakeTree], None] = lambda _: None  # called as each pre-dump is under way: the workload writes
    damaged: bytes = b""  # what the wire makes of the memory; "" leaves it as it is
    network: NetworkFacts | None = None  # where it has one of its own
    host_name: str = ""  # where it has one of its own
    macs: dict[str, str] = field(default_factory=dict)  # of its own network's devices; of a copy, as it was restored
    born: int = field(default_factory=itertools.count(1).__next__)  # stands for the start time: no two copies share it


Fault = Callable[[str], None]


class AgentKilledError(BaseException):
    """An agent that was killed tried to do something. Not an Exception: nothing may handle it."""


class FakeClock:
    """Real time: the component tests look at order, not at seconds."""

    def monotonic_us(self) -> int:
        """CLOCK_MONOTONIC."""
        return time.monotonic_ns() // 1000

    def unix_us(self) -> int:
        """CLOCK_REALTIME."""
        return time.time_ns() // 1000

    async def sleep(self, seconds: float) -> None:
        """Wait for real."""
        await asyncio.sleep(seconds)


@dataclass(slots=True, eq=False)
class FakeMachine:
    """One host: its trees, addresses and fences. `fault` is called with the name of each act and may raise."""

    name: str
    trees: dict[int, FakeTree] = field(default_factory=dict)
    local: list[AddressFacts] = field(default_factory=list)
    fences: dict[str, tuple[AddressFacts, ...]] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)  # outer ends that are connected
    link_fences: dict[str, tuple[LinkFacts, ...]] = field(default_factory=dict)
    heard_macs: set[str] = field(default_factory=set)  # of others on its network
    announced: list[str] = field(default_factory=list)
    dismissed: list[ConnectionFacts] = field(default_factory=list)  # whose clients were told
    acts: list[str] = field(default_factory=list)
    fault: Fault = lambda _: None
    held: list[Held] = field(default_factory=list)
    loading: dict[str, Loading] = field(default_factory=dict)  # of lazily restored copies, by migration
    loads_at_once: bool = True
    outcomes: dict[str, Sequence[Data]] = field(default_factory=dict)  # what is kept of each peer
    speed_percent: int = 100  # what a throttle leaves the trees
    own_namespaces: bool = False  # whether copies have any
    hooks: list[HookFacts] = field(default_factory=list)
    hooks_ran: list[Mapping[str, str]] = field(default_factory=list)  # what each was told
    hook_end: Callable[[Mapping[str, str]], HookEnd] = lambda _: HookEnd(0, 1000)
    agent_alive: Callable[[], bool] = lambda: True

    def act(self, name: str) -> None:
        """Note an act of the agent; whoever injects faults raises here. A killed agent does nothing any more."""
        if not self.agent_alive():
            raise AgentKilledError(name)
        self.acts.append(name)
        self.fault(name)

    def begin_loading(self, migration_id: str, total_bytes: int) -> None:
        """A lazily restored copy runs: its loader, which no agent's death ends, puts the pages in place."""
        self.loading[migration_id] = Loading(LoadingState.LOADING, total_bytes, total_bytes)
        if self.loads_at_once:
            self.finish_loading(migration_id)

    def finish_loading(self, migration_id: str) -> None:
        """All pages are in place."""
        self.loading[migration_id] = Loading(LoadingState.DONE, 0, self.loading[migration_id].total_bytes)

    def kill_agent(self, *, with_engine: bool = False) -> None:
        """What the death of an agent does at once: each CRIU sees its socket close and rolls back, or dies with it."""
        for held in self.held:
            if with_engine:
                held.orphan()
            else:
                held.abandon()
        self.held.clear()

    def state(self, pid: int) -> TreeState:
        """How the tree with this PID stands; DEAD where there is none."""
        return self.trees[pid].state if pid in self.trees else TreeState.DEAD
