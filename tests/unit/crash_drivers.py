"""The drivers of the crash model: journals, rooms, time, engine and messages of hosts that are only values.

`tests.unit.crash_world` puts them together; every act and every message asks the world's leave first.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from phaul.errors import PhaulError, RestoreError, TransferError, UnreachableError
from phaul.lab.fake_engine import FakeGuard, FakeHeldDump, FakeHeldRestore, FakeLoader
from phaul.lab.fake_machine import AgentKilledError, FakeTree, TreeState
from phaul.migration.engine_requests import DumpRequest, PreDumped, PreDumpRequest, RestoreRequest
from phaul.migration.facts import (
    AddressFacts,
    ConnectionFacts,
    DestinationFacts,
    FileFacts,
    HookRun,
    HostFacts,
)
from phaul.migration.forecast import Outcome
from phaul.migration.hooks import HookScene
from phaul.migration.interfaces import HeldDump, HeldRestore
from phaul.migration.journal import Data, Mark, Record, last_of
from phaul.migration.lazy import Loading, LoadingState
from phaul.migration.page_images import HashedImage, PageImage, Runs
from phaul.migration.peer import Aborted, PageChannel, Reservation, RestoredCopy, Resumed
from phaul.migration.recovery import Word, destination_word, source_word
from phaul.transfer.page_store import Received

if TYPE_CHECKING:
    from tests.unit.crash_world import SimHost, World

T = TypeVar("T")

PID = 77
MIGRATION = "m1"
ADDRESS = AddressFacts("10.0.0.9", 24, "eth0")
QUIET_TURNS = 60  # turns of the event loop without a step: everybody waits
MOST_STEPS = 3000
MOST_VIRTUAL_SECONDS = 4000.0


class Fault(StrEnum):
    """What can go wrong at a step."""

    KILL_SOURCE = "kill_source"
    KILL_DESTINATION = "kill_destination"
    KILL_BOTH = "kill_both"
    KILL_DESTINATION_AND_CRIU = "kill_destination_and_criu"
    LOSE_REQUEST = "lose_request"  # of the message of this step, if it is one
    LOSE_REPLY = "lose_reply"
    DUPLICATE = "duplicate"
    PARTITION = "partition"  # this message and the next few
    CANCEL = "cancel"
    FAIL = "fail"  # the act of this step raises


class ViolationError(BaseException):
    """An invariant does not hold. Not an Exception, so that no agent takes it for a failure that it can handle."""


class Process:
    """One life of an agent."""

    def __init__(self) -> None:
        self.alive = True
        self.tasks: set[asyncio.Task[Any]] = set()


current_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class MemoryJournal:
    """A journal that outlives its agent, as one on disk does."""

    def __init__(self, world: World, host: SimHost) -> None:
        self._world = world
        self._host = host
        self.lines: list[Record] = []

    @property
    def records(self) -> Sequence[Record]:
        return self.lines

    async def write(self, mark: Mark, data: Data | None = None) -> None:
        self._world.step(self._host, f"journal before {mark}")
        self.lines.append(Record(mark, dict(data or {})))
        self._world.step(self._host, f"journal after {mark}")
        await asyncio.sleep(0)


class SimJournals:
    """All journals of a host."""

    def __init__(self, world: World, host: SimHost) -> None:
        self._world = world
        self._host = host
        self.by_id: dict[str, MemoryJournal] = {}

    def of(self, migration_id: str) -> MemoryJournal:
        return self.by_id.setdefault(migration_id, MemoryJournal(self._world, self._host))

    def find(self, migration_id: str) -> MemoryJournal | None:
        return self.by_id.get(migration_id)

    def forget(self, migration_id: str) -> None:
        """The disk does not."""


@dataclass(eq=False)
class Room:
    """An image directory: what of the images has come."""

    pages: bool = False
    images: bool = False

    @property
    def complete(self) -> bool:
        return self.pages and self.images


class SimRooms:
    """`ImageRooms`; rooms outlive agents."""

    def __init__(self, host: SimHost) -> None:
        self._host = host

    async def make(self, migration_id: str, size_bytes: int) -> Path:
        self._host.machine.act("rooms.make")
        self._host.rooms[migration_id] = Room()
        return Path("/rooms") / migration_id

    async def all(self) -> tuple[str, ...]:
        return tuple(self._host.rooms)

    async def existing(self, migration_id: str) -> Path | None:
        return Path("/rooms") / migration_id if migration_id in self._host.rooms else None

    async def release(self, migration_id: str) -> None:
        self._host.machine.act("rooms.release")
        loading = self._host.machine.loading.get(migration_id)
        if loading is not None and loading.state is LoadingState.LOADING:
            raise ViolationError("the images were released while a copy that runs was loaded from them")
        self._host.rooms.pop(migration_id, None)


class SimClock:
    """Virtual time."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic_us(self) -> int:
        return int(self._world.now_seconds * 1e6)

    def unix_us(self) -> int:
        return self.monotonic_us()

    async def sleep(self, seconds: float) -> None:
        await self._world.sleep(seconds)


class SimReception:
    """The pages of one migration."""

    def __init__(self) -> None:
        self.token = b"token"
        self.received: asyncio.Future[Received] = asyncio.get_running_loop().create_future()

    def forget(self) -> None:
        """There is nothing to keep."""

    async def stopped(self) -> None:
        self.cancel()

    def cancel(self) -> None:
        if not self.received.done():
            self.received.set_exception(PhaulError("aborted"))
            self.received.exception()


class SimChannel:
    """The source's end of the page channel."""

    def __init__(self, reception: SimReception, process: Process) -> None:
        self.reception = reception
        self.process = process

    def fileno(self) -> int:
        return -1

    async def begin_dump(self, **how: object) -> bool:
        return False

    def pace(self, bytes_per_second: int | None) -> None:
        """Nothing takes time here."""

    def sent_bytes(self) -> int:
        return 0

    def delivered_bytes(self) -> int:
        return 0

    def close(self) -> None:
        self.reception.cancel()


class SimEngine:
    """CRIU, with images in `Room`s."""

    def __init__(self, host: SimHost) -> None:
        self._host = host
        host.machine.loads_at_once = False

    async def describe(self) -> HostFacts:
        return HostFacts()

    async def change_identity(self, *_: object) -> None:
        raise AssertionError("no dump is restored here")

    async def pre_dump(self, request: PreDumpRequest) -> PreDumped:
        machine = self._host.machine
        machine.act("engine.pre_dump")
        self._host.world.deliver_pages(request.migration_id)
        return PreDumped(1 << 20, 1000)

    @asynccontextmanager
    async def dump(
        self, request: DumpRequest, about_to_freeze: Callable[[int], Awaitable[None]]
    ) -> AsyncIterator[HeldDump]:
        await about_to_freeze(0)
        machine = self._host.machine
        tree = machine.trees[request.root_pid]
        tree.state = TreeState.FROZEN
        held = FakeHeldDump(machine, tree)
        try:
            machine.act("engine.dump")
            self._host.world.deliver_pages(request.migration_id)
            yield held
        finally:
            if not held.decided:
                await held.resume()

    @asynccontextmanager
    async def restore(self, request: RestoreRequest) -> AsyncIterator[HeldRestore]:
        machine = self._host.machine
        machine.act("engine.restore")
        room = self._host.rooms.get(request.migration_id)
        if room is None or not room.complete:
            raise RestoreError("there are no complete images")
        if machine.state(request.root_pid) is not TreeState.DEAD:
            raise RestoreError("the PID is taken")
        tree = FakeTree(request.root_pid, b"", state=TreeState.FROZEN)
        machine.trees[request.root_pid] = tree
        held = FakeHeldRestore(machine, tree, request.migration_id if request.lazy else "")
        try:
            yield held
        finally:
            if not held.decided:
                await held.discard()

    async def guard(self) -> FakeGuard:
        return FakeGuard()

    async def loader(self, migration_id: str, images: Path) -> FakeLoader:
        self._host.machine.act("engine.loader")
        return FakeLoader(self._host.machine)

    async def loading(self, migration_id: str) -> Loading:
        """After three looks at a copy that runs all its pages are in place."""
        machine = self._host.machine
        loading = machine.loading.get(migration_id, Loading(LoadingState.LOST))
        if loading.state is LoadingState.LOADING:
            left = (loading.left_bytes or 3) - 1
            machine.loading[migration_id] = Loading(LoadingState.LOADING if left else LoadingState.DONE, left, 2)
        return loading


class SimPeer:
    """`PeerAgent`: messages from one host to the other, each of which can be lost on either way or come twice."""

    name = "other:7428"

    def __init__(self, world: World, here: SimHost, there: SimHost) -> None:
        self._world = world
        self._here = here
        self._there = there

    async def close(self) -> None:
        """Nothing to give back."""

    async def own_address(self) -> str:
        return ""

    async def observe(
        self,
        ids: Sequence[int],
        files: Sequence[FileFacts],
        hooks: Sequence[str] = (),
        addresses: Sequence[AddressFacts] = (),
        macs: Sequence[str] = (),
    ) -> DestinationFacts:
        async def act() -> DestinationFacts:
            taken, seen, _ = await self._there.host.workload.observe(ids, files)
            found = self._there.host.hooks.find(hooks)
            return DestinationFacts(await self._there.host.describe(), seen, taken, ("127.0.0.1",), hooks=found)

        return await self._send("observe", act)

    async def prepare(self, reservation: Reservation) -> PageChannel:
        await self._send("prepare", lambda: self._there.arrivals.prepare(reservation))
        reception = self._there.receptions.get(reservation.migration_id)
        if reception is None or not self._there.process.alive:
            raise UnreachableError("the page channel could not be opened")
        self._world.channel = SimChannel(reception, self._there.process)
        return self._world.channel

    async def reopen(self, migration_id: str) -> PageChannel:
        await self._send("reopen", lambda: self._there.arrivals.reopen(migration_id))
        reception = self._there.receptions[migration_id]
        self._world.channel = SimChannel(reception, self._there.process)
        return self._world.channel

    async def send_images(self, migration_id: str, directory: Path) -> int:
        async def act() -> int:
            self._there.arrivals.images(migration_id)
            if migration_id not in self._there.rooms:
                raise TransferError("the image directory is gone")
            self._there.rooms[migration_id].images = True
            return 1

        return await self._send("send_images", act)

    async def hashed_pages(self, migration_id: str, pending: Sequence[PageImage]) -> tuple[HashedImage, ...]:
        return await self._send("hashed_pages", lambda: self._there.arrivals.hashed_pages(migration_id, pending))

    async def received_content(self, migration_id: str, name: str, runs: Runs) -> bytes:
        return b""

    async def restore(self, migration_id: str, unaccepted: Sequence[ConnectionFacts] = ()) -> RestoredCopy:
        return await self._send("restore", lambda: self._there.arrivals.restore(migration_id, unaccepted))

    async def resume(self, migration_id: str) -> Resumed:
        return await self._send("resume", lambda: self._there.arrivals.resume(migration_id))

    async def learn(self, migration_id: str, outcome: Outcome) -> None:
        pass  # there is no pre-copy in this world, and nothing depends on it

    async def abort(self, migration_id: str, reason: str, deadline_seconds: float = 0) -> Aborted:
        return await self._send("abort", lambda: self._there.arrivals.abort(migration_id))

    async def run_hooks(self, stage: str, scene: HookScene, deadline_seconds: float) -> tuple[HookRun, ...]:
        return await self._send("run_hooks", lambda: self._there.arrivals.run_hooks(stage, scene))

    async def word(self, migration_id: str) -> Word:
        async def act() -> Word:
            journal = self._there.journals.find(migration_id)
            records = journal.records if journal else ()
            if last_of(records, Mark.RESERVED):
                return destination_word(records)
            return source_word(records, killed=self._there.killed())

        try:
            return await self._send("word", act)
        except PhaulError:
            return Word.NO_ANSWER

    async def _send(self, name: str, act: Callable[[], Awaitable[T]]) -> T:
        fault = self._world.step(self._here, f"message {name}")
        await asyncio.sleep(0)
        if fault is Fault.PARTITION:
            self._world.cut = 6
        if self._world.cut > 0 or fault is Fault.LOSE_REQUEST or not self._there.process.alive:
            self._world.cut -= 1
            raise UnreachableError(f"{name} was lost")
        answer = self._there.run(act)
        if fault is Fault.DUPLICATE:
            self._there.run(act).add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            result = await asyncio.shield(answer)
        except AgentKilledError:
            raise UnreachableError(f"the other agent died during {name}") from None
        except asyncio.CancelledError:
            if answer.cancelled():
                raise UnreachableError(f"the other agent died during {name}") from None
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        if fault is Fault.LOSE_REPLY:
            raise UnreachableError(f"the reply to {name} was lost")
        return result
