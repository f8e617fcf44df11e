"""What the decisions need of the world, as protocols. `agent.wiring` names the drivers; tests bring others.

Nothing in `migration` imports a driver. A method that can fail raises a `phaul.errors.PhaulError`; the docstring says
what state that leaves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phaul.migration.engine_requests import (
    DumpRequest,
    PreDumped,
    PreDumpRequest,
    RestoredTree,
    RestoreRequest,
)
from phaul.migration.facts import ConnectionFacts, FileFacts, HostFacts, Occupancy, WorkloadFacts
from phaul.migration.guard import Guard
from phaul.migration.journal import Data
from phaul.migration.lazy import Loader, Loading
from phaul.migration.page_images import Ahead, Block, HashedImage
from phaul.migration.readdressing import STAYING, Readdressing
from phaul.migration.recovery import Tree


class Clock(Protocol):
    """Time, so that decisions never read one themselves."""

    def monotonic_us(self) -> int:
        """Microseconds of a clock that never goes back and is not disturbed by setting the time."""
        ...

    def unix_us(self) -> int:
        """Microseconds since 1970, for people and journals."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait, so that a model can let time pass without waiting."""
        ...


@dataclass(frozen=True, slots=True)
class TreeIdentity:
    """Which processes are meant, for good: PIDs are reused, these are not.

    `tasks` are (PID, start in clock ticks since boot), the root task first; `boot_id` is the kernel's own.
    """

    boot_id: str
    tasks: tuple[tuple[int, int], ...]

    def as_data(self) -> Data:
        """The JSON value that a journal keeps."""
        return {"boot_id": self.boot_id, "tasks": [list(task) for task in self.tasks]}

    @classmethod
    def from_data(cls, data: Data) -> TreeIdentity:
        """The opposite of `as_data`."""
        return cls(str(data["boot_id"]), tuple((int(pid), int(ticks)) for pid, ticks in data["tasks"]))


class Workload(Protocol):
    """Finds out what can be known of a process tree without touching it."""

    async def inspect(self, root_pid: int) -> WorkloadFacts:
        """Say what the tree under `root_pid` is and holds.

        Raises `PreflightError` for what cannot be migrated: no such PID, a kernel thread, a zombie, this agent.
        """
        ...

    async def observe(
        self, ids: Sequence[int], files: Sequence[FileFacts]
    ) -> tuple[tuple[int, ...], tuple[FileFacts, ...], Occupancy]:
        """Say which of `ids` are in use on this host, how each path of `files` looks here, and what else is taken."""
        ...

    async def unaccepted(self, facts: WorkloadFacts, *, closing: bool = False) -> tuple[ConnectionFacts, ...]:
        """Give the connections to the listening sockets of a frozen tree that it has not accepted.

        Those too that are not made to the end yet. None of them is in an image. With `closing` every other TCP
        connection of its own network namespace is given as well, for none is in an image then.
        """
        ...

    async def keeper(self, facts: WorkloadFacts) -> Keeper:
        """Start the keeper of a tree that is about to be frozen; see `Keeper`. Raises `PhaulError`."""
        ...

    async def differing(self, pids: Sequence[int], images: Sequence[HashedImage], ahead: Ahead) -> tuple[Block, ...]:
        """Compare the memory of a tree with what was received of it; give the blocks that differ.

        The memory here is hashed, as far as it was not `ahead`. Raises `TransferError` where the digests make no sense.
        """
        ...

    async def differs(self, tree: TreeHandle, block: Block, theirs: bytes) -> bool:
        """Whether a block of a frozen tree differs from the destination's in more than what the kernel writes there.

        It does, into a stopped thread. Raises `TransferError` where the memory cannot be read.
        """
        ...

    async def hash_ahead(self, facts: WorkloadFacts) -> Ahead:
        """Hash what of a tree will probably be dumped, while it runs."""
        ...

    async def sample(self, facts: WorkloadFacts) -> Sequence[bytes]:
        """Give a few MiB of the tree's memory, in pieces taken at random; nothing where it cannot be read."""
        ...

    async def identify(self, root_pid: int) -> TreeIdentity:
        """Say which processes the tree under `root_pid` has now. Raises `PhaulError` where there is none."""
        ...

    async def look(self, identity: TreeIdentity) -> tuple[Tree, bool]:
        """Say what became of a tree, and whether any task of it other than the root still lives."""
        ...

    async def run_again(self, identity: TreeIdentity) -> None:
        """See that a tree runs which an agent and a keeper before this one have left standing still.

        Right only for a tree that was frozen for a migration, is in no engine's hands any more and shall run here. A
        tree that runs is not disturbed.
        """
        ...

    async def finish_kill(self, identity: TreeIdentity) -> None:
        """Kill what still lives of a tree, unheard by its clients; each checked by pidfd and start time."""
        ...


class Keeper(Protocol):
    """Keeps a frozen tree from harm when the engine, or this agent, dies in the middle.

    A process of its own: should this agent die, it waits until the engine has let go of the tree, and lets it run.
    Owns that process until `close`.
    """

    async def ready(self) -> None:
        """Wait until it can be relied on. Raises `DumpError`; nothing is frozen yet."""
        ...

    async def watch(self, engine_pid: int) -> None:
        """The engine's process is about to freeze the tree: should it be killed, no connection shall be harmed."""
        ...

    async def hold(self) -> TreeHandle:
        """Take hold of the frozen tree: from here on it stands still even when the engine dies.

        Raises `DumpError` when it is not the one that was inspected, or when nobody would be there to let it run.
        """
        ...

    async def run_again(self) -> None:
        """After the engine has ended on the way back: see that the tree runs and its connections work."""
        ...

    async def close(self) -> None:
        """Say farewell: the tree runs, or is dead. Also gives back what `hold` gave."""
        ...


class TreeHandle(Protocol):
    """The tasks of one frozen tree, each held by a pidfd until `close`, so that a reused PID can never be hit."""

    def stands_still(self) -> bool:
        """Say whether no task can have run since it was taken hold of."""
        ...

    def release(self) -> None:
        """The engine is about to let the tree run: it need not stand still on its own any more."""
        ...

    @property
    def pids(self) -> tuple[int, ...]:
        """Every process held, the root task first."""
        ...

    @property
    def identity(self) -> TreeIdentity:
        """The same processes, as a journal names them."""
        ...

    def silence(self) -> None:
        """See to it that the connections end without a word, and leave nothing, once the tree is killed."""
        ...

    def kill(self) -> None:
        """Deliver SIGKILL to every process of the tree: after this, none runs an instruction of its own again."""
        ...

    async def wait_dead(self, timeout_seconds: float) -> bool:
        """Wait until the kernel has ended every process; False when the time ran out."""
        ...

    def close(self) -> None:
        """Give the pidfds back."""
        ...


class HeldDump(Protocol):
    """A tree frozen by a finished final dump, held at CRIU's `post-dump` gate.

    Invariant: exactly one of `release_killed` and `resume` takes effect; leaving the context without a decision is
    `resume`. Until then every task of the tree is stopped.
    """

    @property
    def frozen_since_us(self) -> int:
        """When the freeze began, on `Clock.monotonic_us`."""
        ...

    async def release_killed(self) -> None:
        """Pass the gate after the tree was killed: CRIU takes leave of it and ends. Errors are only of cleaning up."""
        ...

    async def resume(self) -> None:
        """Refuse the gate: CRIU lets the tree run on as if nothing had been. Returns when it does."""
        ...


class HeldRestore(Protocol):
    """A restored tree held at CRIU's `post-restore` gate.

    Invariant: exactly one of `run` and `discard` takes effect; leaving the context without a decision is `discard`.
    """

    @property
    def tree(self) -> RestoredTree:
        """What is held."""
        ...

    async def run(self, open_network: Callable[[], Awaitable[None]]) -> None:
        """Pass the gate: the copy runs from here on, whatever else fails.

        `open_network` is awaited when nothing can keep the copy from running any more, and before it runs; then its
        clients are told of it. What it raises is raised in the end, with the copy running. Raises `RestoreError` where
        the copy does not run, or where that cannot be known.
        """
        ...

    async def discard(self) -> None:
        """Refuse the gate: the copy is killed; the images stay good for another restore."""
        ...


class Engine(Protocol):
    """What dumps and restores: CRIU, or the fake one that component tests use."""

    async def describe(self) -> HostFacts:
        """Fill in what the engine knows of this host: versions, features, and problems that keep it from working."""
        ...

    async def pre_dump(self, request: PreDumpRequest) -> PreDumped:
        """Send what was written since `parent`, while the tree runs; returns when the destination has all of it.

        From here on the kernel tracks what is written. The tree is stopped for a moment only. Raises `DumpError` with
        the tree running, and so does cancelling; the page channel is of no use afterwards.
        """
        ...

    def dump(
        self, request: DumpRequest, about_to_freeze: Callable[[int], Awaitable[None]]
    ) -> AbstractAsyncContextManager[HeldDump]:
        """Freeze and dump. Entering raises `DumpError` with the tree running as before.

        `about_to_freeze` is awaited at the last moment before the tasks are stopped; if it raises, they are not. It is
        given the PID of the process that is about to stop them.
        """
        ...

    async def change_identity(
        self,
        images: Path,
        new_addresses: Sequence[tuple[str, str]] = (),
        readdressing: Readdressing = STAYING,
        new_macs: Sequence[tuple[str, str]] = (),
        host_name: str = "",
    ) -> None:
        """Have a finished dump be restored with another identity, as `DumpRequest` has it. Raises `PhaulError`."""
        ...

    def restore(self, request: RestoreRequest) -> AbstractAsyncContextManager[HeldRestore]:
        """Restore up to the gate. Entering raises `RestoreError` with no copy left and the images good."""
        ...

    async def guard(self) -> Guard:
        """Start the guard for a copy. Raises `PhaulError`."""
        ...

    async def loader(self, migration_id: str, images: Path) -> Loader:
        """Start the loader for a lazy restore from `images`, which need not be there yet. Raises `PhaulError`."""
        ...

    async def loading(self, migration_id: str) -> Loading:
        """Say how far the loader of a copy that was let run is, also one that an agent before this one has started."""
        ...


class OutcomeStore(Protocol):
    """What earlier migrations have taught of the pairs of hosts they went between: plain data, oldest first."""

    async def of(self, peer: str) -> Sequence[Data]:
        """What is known of this host and `peer`. Never raises: what cannot be read is not known."""
        ...

    async def keep(self, peer: str, outcomes: Sequence[Data]) -> None:
        """Keep this, in place of what was kept before. Never raises: it only makes predictions better."""
        ...


class ImageRooms(Protocol):
    """Where the images of a migration lie while it is under way: in memory, bounded, one directory each, mode 0700."""

    async def make(self, migration_id: str, size_bytes: int) -> Path:
        """Make an empty directory that holds at most `size_bytes`."""
        ...

    async def all(self) -> tuple[str, ...]:
        """Every migration that has a directory here, also one of an agent before this one."""
        ...

    async def existing(self, migration_id: str) -> Path | None:
        """Give the directory that an agent before this one made, if it is still there."""
        ...

    async def release(self, migration_id: str) -> None:
        """Give the directory and its memory back; nothing happens where there is none."""
        ...
