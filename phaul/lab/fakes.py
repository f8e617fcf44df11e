"""Hosts that need no root and no CRIU: a made-up machine on which trees tick, are frozen, dumped, restored and killed.

Used by the component tests, which put real agents, gRPC and page channels around it. The machines outlive the agents
and tell the truth about them: which copies run, are frozen or dead, on which host.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from phaul import __version__
from phaul.errors import DumpError, PreflightError, RestoreError
from phaul.migration.facts import AddressFacts, ConnectionFacts, FileFacts, HostFacts, TaskFacts, WorkloadFacts
from phaul.migration.host import Host
from phaul.migration.interfaces import (
    DumpRequest,
    HeldDump,
    HeldRestore,
    RestoredTree,
    RestoreRequest,
    TreeIdentity,
)
from phaul.migration.recovery import Tree
from phaul.transfer import page_protocol
from phaul.transfer.page_protocol import Command, Header, PageFlag

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class TreeState(StrEnum):
    """How one copy of a tree stands."""

    RUNNING = "running"
    FROZEN = "frozen"
    DEAD = "dead"


@dataclass(slots=True, eq=False)
class FakeTree:
    """One copy of a workload on one host. `memory` is what must arrive."""

    pid: int
    memory: bytes
    connections: tuple[ConnectionFacts, ...] = ()
    state: TreeState = TreeState.RUNNING
    born: int = field(default_factory=itertools.count(1).__next__)  # stands for the start time: no two copies share it


Fault = Callable[[str], None]


class AgentKilledError(BaseException):
    """An agent that was killed tried to do something. Not an Exception: nothing may handle it."""


@dataclass(slots=True, eq=False)
class FakeMachine:
    """One host: its trees, addresses and fences. `fault` is called with the name of each act and may raise."""

    name: str
    trees: dict[int, FakeTree] = field(default_factory=dict)
    local: list[AddressFacts] = field(default_factory=list)
    fences: dict[str, tuple[AddressFacts, ...]] = field(default_factory=dict)
    announced: list[str] = field(default_factory=list)
    acts: list[str] = field(default_factory=list)
    fault: Fault = lambda _: None
    held: list[FakeHeldDump | FakeHeldRestore] = field(default_factory=list)
    agent_alive: Callable[[], bool] = lambda: True

    def act(self, name: str) -> None:
        """Note an act of the agent; whoever injects faults raises here. A killed agent does nothing any more."""
        if not self.agent_alive():
            raise AgentKilledError(name)
        self.acts.append(name)
        self.fault(name)

    def kill_agent(self) -> None:
        """What the death of an agent does at once: each CRIU sees its socket close and rolls back."""
        for held in self.held:
            held.abandon()
        self.held.clear()

    def state(self, pid: int) -> TreeState:
        """How the tree with this PID stands; DEAD where there is none."""
        return self.trees[pid].state if pid in self.trees else TreeState.DEAD


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


class FakeRooms:
    """Image directories on disk."""

    def __init__(self, machine: FakeMachine, directory: Path) -> None:
        self._machine = machine
        self._directory = directory

    async def make(self, migration_id: str, size_bytes: int) -> Path:
        """Make one."""
        self._machine.act("rooms.make")
        path = self._directory / migration_id
        path.mkdir(parents=True)
        return path

    async def existing(self, migration_id: str) -> Path | None:
        """It outlives an agent."""
        path = self._directory / migration_id
        return path if path.exists() else None

    async def release(self, migration_id: str) -> None:
        """Remove it."""
        self._machine.act("rooms.release")
        path = self._directory / migration_id
        if path.exists():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


class FakeTreeHandle:
    """`TreeHandle` on one tree."""

    def __init__(self, machine: FakeMachine, tree: FakeTree) -> None:
        self._machine = machine
        self._tree = tree

    @property
    def pids(self) -> tuple[int, ...]:
        """One process."""
        return (self._tree.pid,)

    @property
    def identity(self) -> TreeIdentity:
        """The same."""
        return identity_of(self._tree)

    def kill(self) -> None:
        """End it."""
        self._machine.act("tree.kill")
        self._tree.state = TreeState.DEAD

    async def wait_dead(self, timeout_seconds: float) -> bool:
        """It dies at once."""
        return self._tree.state is TreeState.DEAD

    def close(self) -> None:
        """Nothing to give back."""


class FakeWorkload:
    """`Workload` on a machine."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    async def inspect(self, root_pid: int) -> WorkloadFacts:
        """Describe a tree of one process."""
        self._machine.act("workload.inspect")
        tree = self._machine.trees.get(root_pid)
        if tree is None or tree.state is TreeState.DEAD:
            raise PreflightError(f"there is no process {root_pid}")
        task = TaskFacts(root_pid, 1, "fake", (root_pid,), 0, 1)
        return WorkloadFacts(root_pid, (task,), len(tree.memory), (), tree.connections)

    async def observe(
        self, ids: Sequence[int], files: Sequence[FileFacts]
    ) -> tuple[tuple[int, ...], tuple[FileFacts, ...]]:
        """IDs of living trees are taken; every file is as it should be."""
        self._machine.act("workload.observe")
        return tuple(pid for pid in ids if self._machine.state(pid) is not TreeState.DEAD), tuple(files)

    async def hold(self, facts: WorkloadFacts) -> FakeTreeHandle:
        """Take hold."""
        self._machine.act("workload.hold")
        return FakeTreeHandle(self._machine, self._machine.trees[facts.root_pid])

    async def identify(self, root_pid: int) -> TreeIdentity:
        """Name the copy."""
        return identity_of(self._machine.trees[root_pid])

    async def look(self, identity: TreeIdentity) -> tuple[Tree, bool]:
        """Say what became of it."""
        self._machine.act("workload.look")
        pid, born = identity.tasks[0]
        tree = self._machine.trees.get(pid)
        if tree is None or tree.born != born or tree.state is TreeState.DEAD:
            return Tree.DEAD, False
        return (Tree.HELD if tree.state is TreeState.FROZEN else Tree.ALIVE), False

    async def finish_kill(self, identity: TreeIdentity) -> None:
        """There is only a root task."""


def identity_of(tree: FakeTree) -> TreeIdentity:
    """Name a copy for good."""
    return TreeIdentity("boot", ((tree.pid, tree.born),))


class FakeNetwork:
    """`NetworkIdentity` on a machine."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    async def addresses(self) -> tuple[AddressFacts, ...]:
        """What stands on the machine."""
        return tuple(self._machine.local)

    async def local_addresses(self) -> tuple[str, ...]:
        """The same, and loopback."""
        return ("127.0.0.1", "::1", *(each.address for each in self._machine.local))

    async def fence(self, migration_id: str, addresses: Sequence[AddressFacts]) -> None:
        """Raise a fence."""
        self._machine.act("network.fence")
        self._machine.fences[migration_id] = tuple(addresses)

    async def unfence(self, migration_id: str) -> None:
        """Lift it."""
        self._machine.act("network.unfence")
        self._machine.fences.pop(migration_id, None)

    async def add(self, addresses: Sequence[AddressFacts]) -> None:
        """Put addresses on; they must be fenced, or the source must have given them up."""
        self._machine.act("network.add")
        self._machine.local += [each for each in addresses if each not in self._machine.local]

    async def remove(self, addresses: Sequence[AddressFacts]) -> None:
        """Take them off."""
        self._machine.act("network.remove")
        self._machine.local = [each for each in self._machine.local if each not in addresses]

    async def announce(self, addresses: Sequence[AddressFacts]) -> None:
        """Note it."""
        self._machine.act("network.announce")
        self._machine.announced += [each.address for each in addresses]

    async def remove_engine_locks(self, root_pid: int, connections: Sequence[ConnectionFacts] = ()) -> None:
        """There are none."""
        self._machine.act("network.remove_engine_locks")


class FakeHeldDump:
    """`HeldDump` on one tree."""

    def __init__(self, machine: FakeMachine, tree: FakeTree) -> None:
        self._machine = machine
        self._tree = tree
        self.frozen_since_us = time.monotonic_ns() // 1000
        self.decided = False
        machine.held.append(self)

    def abandon(self) -> None:
        """CRIU sees the socket close: it lets the tree run on."""
        if self._tree.state is TreeState.FROZEN:
            self._tree.state = TreeState.RUNNING

    async def release_killed(self) -> None:
        """CRIU takes leave of a dead tree."""
        self._machine.act("engine.release")
        self.decided = True

    async def resume(self) -> None:
        """Thaw, unless it is dead: nothing brings a killed tree back."""
        self._machine.act("engine.resume")
        self.decided = True
        if self._tree.state is TreeState.FROZEN:
            self._tree.state = TreeState.RUNNING
            self._machine.acts.append("tree.resume")


class FakeHeldRestore:
    """`HeldRestore` on one tree."""

    def __init__(self, machine: FakeMachine, tree: FakeTree) -> None:
        self._machine = machine
        self._tree = tree
        self.decided = False
        machine.held.append(self)

    def abandon(self) -> None:
        """CRIU sees the socket close before the gate was passed: it kills the copy."""
        if not self.decided:
            self._tree.state = TreeState.DEAD

    @property
    def tree(self) -> RestoredTree:
        """The copy."""
        return RestoredTree(self._tree.pid, 1000)

    async def run(self) -> None:
        """It runs from here on."""
        self._machine.act("copy.run")
        self.decided = True
        self._tree.state = TreeState.RUNNING

    async def discard(self) -> None:
        """It is killed."""
        self._machine.act("copy.discard")
        if not self.decided:
            self.decided = True
            self._tree.state = TreeState.DEAD


class FakeEngine:
    """`Engine` on a machine. Its dump speaks CRIU's page-server protocol into the page channel it is given."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    async def describe(self) -> HostFacts:
        """A CRIU that can do everything."""
        return HostFacts(criu_version="4.2.1", criu_path="fake", features=("lazy_pages", "mem_track"))

    @asynccontextmanager
    async def dump(
        self, request: DumpRequest, about_to_freeze: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[HeldDump]:
        """Freeze, send the memory, write one small image, hold."""
        await about_to_freeze()
        tree = self._machine.trees[request.root_pid]
        tree.state = TreeState.FROZEN
        held = FakeHeldDump(self._machine, tree)
        try:
            try:
                self._machine.act("engine.dump")
                await asyncio.to_thread(send_memory, request.page_channel_fd, tree)
            except OSError as error:
                raise DumpError(f"the page channel broke: {error.strerror}") from error
            content = {"pid": tree.pid, "connections": len(tree.connections)}
            (request.images / "fake.img").write_text(json.dumps(content))
            yield held
        finally:
            if not held.decided:
                await held.resume()

    @asynccontextmanager
    async def restore(self, request: RestoreRequest) -> AsyncIterator[HeldRestore]:
        """Make a frozen copy out of the images, hold."""
        self._machine.act("engine.restore")
        try:
            pid = json.loads((request.images / "fake.img").read_text())["pid"]
            memory = (request.images / "pages-1.img").read_bytes()
        except FileNotFoundError as error:
            raise RestoreError(f"there is no image {error.filename}") from error
        tree = FakeTree(pid, memory, state=TreeState.FROZEN)
        self._machine.trees[pid] = tree
        held = FakeHeldRestore(self._machine, tree)
        try:
            yield held
        finally:
            if not held.decided:
                await held.discard()


def send_memory(fd: int, tree: FakeTree) -> None:
    """Do what CRIU's dump does: open the task's image, add one run of pages, close, wait for the status."""
    image = page_protocol.task_image(tree.pid)
    pages = len(tree.memory) // PAGE_BYTES
    with socket.socket(fileno=os.dup(fd)) as channel:
        channel.sendall(page_protocol.encode(Header(Command.OPEN2, 0, 0, 0, image)))
        if channel.recv(1) != page_protocol.OPENED_WITHOUT_PARENT:
            raise ConnectionError(104, "the page receiver did not open the image")
        channel.sendall(page_protocol.encode(Header(Command.ADD_F, PageFlag.PRESENT, pages, 0x10000, image)))
        channel.sendall(tree.memory)
        channel.sendall(page_protocol.encode(Header(Command.FORCE_CLOSE, 0, 0, 0, 0)))
        if len(channel.recv(page_protocol.STATUS.size)) != page_protocol.STATUS.size:
            raise ConnectionError(104, "the page receiver gave no status")


def fake_host(machine: FakeMachine, directory: Path) -> Host:
    """Put a host together for `AgentServer`."""
    engine = FakeEngine(machine)

    async def describe() -> HostFacts:
        known = await engine.describe()
        return HostFacts(
            host_name=machine.name,
            phaul_version=__version__,
            kernel_release="6.12.0",
            architecture="x86_64",
            page_size_bytes=PAGE_BYTES,
            criu_version=known.criu_version,
            criu_path=known.criu_path,
            features=known.features,
            memory_available_bytes=1 << 40,
            addresses=tuple(machine.local),
            devices=("lo", "eth0"),
        )

    return Host(
        workload=FakeWorkload(machine),
        engine=engine,
        network=FakeNetwork(machine),
        rooms=FakeRooms(machine, directory),
        clock=FakeClock(),
        describe=describe,
    )
