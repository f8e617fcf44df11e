"""Hosts that need no root and no CRIU: a made-up machine on which trees tick, are frozen, dumped, restored and killed.

Used by the component tests, which put real agents, gRPC and page channels around it. The machines outlive the agents
and tell the truth about them: which copies run, are frozen or dead, on which host.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from phaul import __version__
from phaul.errors import PreflightError
from phaul.lab.fake_engine import MEMORY_ADDRESS, FakeEngine
from phaul.lab.fake_links import FakeOwnNetworks
from phaul.lab.fake_machine import PAGE_BYTES, FakeClock, FakeMachine, FakeTree, TreeState
from phaul.migration.facts import (
    AddressFacts,
    ClaimFacts,
    ConnectionFacts,
    FileFacts,
    HookFacts,
    HostFacts,
    Occupancy,
    TaskFacts,
    WorkloadFacts,
)
from phaul.migration.hooks import HookEnd
from phaul.migration.host import Host
from phaul.migration.interfaces import TreeHandle, TreeIdentity
from phaul.migration.journal import Data
from phaul.migration.page_images import Ahead, Block, HashedImage
from phaul.migration.recovery import Tree
from phaul.system.memory import page_size_bytes
from phaul.system.task_memory import blocks_of, digest


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

    async def all(self) -> tuple[str, ...]:
        """Every directory."""
        return tuple(path.name for path in self._directory.iterdir()) if self._directory.exists() else ()

    async def existing(self, migration_id: str) -> Path | None:
        """It outlives an agent."""
        path = self._directory / migration_id
        return path if path.exists() else None

    async def release(self, migration_id: str) -> None:
        """Remove it."""
        self._machine.act("rooms.release")
        path = self._directory / migration_id
        if path.exists():
            shutil.rmtree(path)


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

    def stands_still(self) -> bool:
        """It is frozen, or dead."""
        return self._tree.state is not TreeState.RUNNING

    def release(self) -> None:
        """The engine alone holds it."""

    def silence(self) -> None:
        """Its connections are made-up as well."""
        self._machine.act("tree.silence")

    def kill(self) -> None:
        """End it."""
        self._machine.act("tree.kill")
        self._tree.state = TreeState.DEAD

    async def wait_dead(self, timeout_seconds: float) -> bool:
        """It dies at once."""
        return self._tree.state is TreeState.DEAD

    def close(self) -> None:
        """Nothing to give back."""


class FakeKeeper:
    """`Keeper` of a tree that its engine never loses."""

    def __init__(self, machine: FakeMachine, root_pid: int) -> None:
        self._machine = machine
        self._root_pid = root_pid

    async def ready(self) -> None:
        """It is."""

    async def watch(self, engine_pid: int) -> None:
        """There is nothing to watch."""

    async def hold(self) -> FakeTreeHandle:
        """Take hold."""
        self._machine.act("workload.hold")
        return FakeTreeHandle(self._machine, self._machine.trees[self._root_pid])

    async def run_again(self) -> None:
        """It does."""

    async def close(self) -> None:
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
        return WorkloadFacts(
            root_pid,
            (task,),
            len(tree.memory),
            (),
            tree.connections,
            has_own_network=tree.network is not None,
            has_own_host_name=bool(tree.host_name),
        )

    async def observe(
        self, ids: Sequence[int], files: Sequence[FileFacts]
    ) -> tuple[tuple[int, ...], tuple[FileFacts, ...], Occupancy]:
        """IDs of living trees are taken; every file is as it should be."""
        self._machine.act("workload.observe")
        return tuple(pid for pid in ids if self._machine.state(pid) is not TreeState.DEAD), tuple(files), Occupancy()

    async def unaccepted(self, facts: WorkloadFacts, *, closing: bool = False) -> tuple[ConnectionFacts, ...]:
        """What the tree was given."""
        return self._machine.trees[facts.root_pid].unaccepted + (facts.connections if closing else ())

    async def keeper(self, facts: WorkloadFacts) -> FakeKeeper:
        """Give one."""
        return FakeKeeper(self._machine, facts.root_pid)

    async def differing(self, pids: Sequence[int], images: Sequence[HashedImage], ahead: Ahead) -> tuple[Block, ...]:
        """Compare with what the tree really holds."""
        self._machine.act("workload.differing")
        memory = memoryview(self._machine.trees[pids[0]].memory)
        found = []
        for image in images:
            blocks = blocks_of(image.runs, page_size_bytes(), image.block_bytes)
            for (_, segments), theirs in zip(blocks, image.digests, strict=True):
                pieces = (memory[at - MEMORY_ADDRESS :][:size] for at, size in segments)
                if digest(memoryview(b"".join(pieces))) != theirs:
                    found.append(Block(image.name, tuple((at, size // page_size_bytes()) for at, size in segments)))
        return tuple(found)

    async def differs(self, tree: TreeHandle, block: Block, theirs: bytes) -> bool:
        """No kernel writes here."""
        return True

    async def hash_ahead(self, facts: WorkloadFacts) -> Ahead:
        """Nothing."""
        return {}

    async def sample(self, facts: WorkloadFacts) -> tuple[bytes, ...]:
        """All of it."""
        return (self._machine.trees[facts.root_pid].memory,)

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
        if tree.state is TreeState.UNFINISHED:
            return Tree.UNFINISHED, True
        return (Tree.HELD if tree.state is TreeState.FROZEN else Tree.ALIVE), False

    async def finish_kill(self, identity: TreeIdentity) -> None:
        """End the copy that is meant, and no other."""
        pid, born = identity.tasks[0]
        tree = self._machine.trees.get(pid)
        if tree is not None and tree.born == born:
            self._machine.act("workload.finish_kill")
            tree.state = TreeState.DEAD

    async def run_again(self, identity: TreeIdentity) -> None:
        """It does."""


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

    async def fences(self) -> tuple[str, ...]:
        """Whose stand."""
        return tuple(self._machine.fences)

    async def claims(self, addresses: Sequence[AddressFacts]) -> tuple[ClaimFacts, ...]:
        """Nobody else has them."""
        return ()

    async def heard(self, macs: Sequence[str]) -> tuple[str, ...]:
        """Those of others on the network."""
        return tuple(mac for mac in macs if mac in self._machine.heard_macs)

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

    async def dismiss(self, root_pid: int, connections: Sequence[ConnectionFacts]) -> None:
        """Note it."""
        self._machine.act("network.dismiss")
        self._machine.dismissed += connections

    async def engine_locks(self, root_pid: int, connections: Sequence[ConnectionFacts]) -> tuple[str, ...]:
        """There are none."""
        return ()

    async def remove_engine_locks(self, root_pid: int, connections: Sequence[ConnectionFacts] = ()) -> None:
        """There are none."""
        self._machine.act("network.remove_engine_locks")


class FakeThrottle:
    """`Throttle` on a machine: all trees share their speed."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    async def look(self, root_pid: int) -> Data:
        """Nothing slows it."""
        self._machine.act("throttle.look")
        return {"percent": self._machine.speed_percent}

    async def slow_to(self, before: Data, percent: int) -> None:
        """Slow it."""
        self._machine.act("throttle.slow_to")
        self._machine.speed_percent = percent

    async def put_back(self, before: Data) -> tuple[str, ...]:
        """As it was."""
        self._machine.act("throttle.put_back")
        self._machine.speed_percent = before["percent"]
        return ()


class FakeOutcomes:
    """`OutcomeStore` on a machine."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    async def of(self, peer: str) -> Sequence[Data]:
        """What was kept."""
        return self._machine.outcomes.get(peer, ())

    async def keep(self, peer: str, outcomes: Sequence[Data]) -> None:
        """Keep it."""
        self._machine.outcomes[peer] = outcomes


class FakeHooks:
    """`Hooks` on a machine."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    def find(self, files: Sequence[str]) -> tuple[HookFacts, ...]:
        """What is there."""
        return (*self._machine.hooks, *(HookFacts("", file, "", 1.0) for file in files))

    async def run(self, hook: HookFacts, environment: Mapping[str, str]) -> HookEnd:
        """Note what it is told, and end as the machine says."""
        self._machine.act(f"hook {environment['PHAUL_STAGE']}")
        self._machine.hooks_ran.append(environment)
        return self._machine.hook_end(environment)


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
            devices=("lo", "eth0", "br0", *machine.links),
            bridges=("br0",),
        )

    return Host(
        workload=FakeWorkload(machine),
        engine=engine,
        network=FakeNetwork(machine),
        own_networks=FakeOwnNetworks(machine),
        rooms=FakeRooms(machine, directory),
        throttle=FakeThrottle(machine),
        outcomes=FakeOutcomes(machine),
        clock=FakeClock(),
        hooks=FakeHooks(machine),
        describe=describe,
    )
