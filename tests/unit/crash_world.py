"""A world of two hosts in which agents can be killed, messages lost and journals read again, at any step.

The coordinator, the arrivals, the journals' records and the settlement are the real ones; below them stand the fakes of
`phaul.lab.fakes`. Time is virtual: nothing waits. Every act of an agent and every message is a numbered step, and a
plan says what happens at which. The world sees all copies and checks I1 and I2 at each step, as no agent could.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from phaul import __version__
from phaul.errors import DumpError, PhaulError
from phaul.lab.fake_links import FakeOwnNetworks
from phaul.lab.fake_machine import AgentKilledError, FakeMachine, FakeTree, TreeState
from phaul.lab.fakes import FakeHooks, FakeNetwork, FakeOutcomes, FakeThrottle, FakeWorkload
from phaul.migration.arrivals import Arrivals
from phaul.migration.coordinator import Coordinator
from phaul.migration.events import Event, Outcome
from phaul.migration.facts import AddressRequest, HostFacts, LinkFacts, MigrationRequest, NetworkFacts
from phaul.migration.hooks import Stage
from phaul.migration.host import Host
from phaul.migration.journal import Mark, ended, last_of
from phaul.migration.page_images import HashedImage, PageImage, Runs
from phaul.migration.peer import Reservation
from phaul.migration.reception import ReceivedPages
from phaul.migration.settlement import settle_destination, settle_source
from phaul.transfer.page_store import Received, ReceivedImage
from tests.unit.crash_drivers import (
    ADDRESS,
    MIGRATION,
    MOST_STEPS,
    MOST_VIRTUAL_SECONDS,
    PID,
    QUIET_TURNS,
    Fault,
    MemoryJournal,
    Process,
    Room,
    SimChannel,
    SimClock,
    SimEngine,
    SimJournals,
    SimPeer,
    SimReception,
    SimRooms,
    ViolationError,
    current_process,
)
from tests.unit.crash_hooks import HOOKS, ran_as_it_ended

T = TypeVar("T")
LINK = LinkFacts("eth0", "veth", "02:00:00:00:00:50", "vweb", "br0")
NETWORK = NetworkFacts((LINK,), ("web",))
LEFT_OUT = NetworkFacts((replace(LINK, kind="ipvlan", bridge="", mode="l2 bridge"),), ("web",))  # by the engine


async def everybody(*_: object) -> None:
    """Every migration may come in."""


class NoPages:
    """The memory of a tree in this world is always b""."""

    async def hashed(self, received: ReceivedPages, pending: Sequence[PageImage]) -> tuple[HashedImage, ...]:
        return ()

    async def content(self, received: ReceivedPages, name: str, runs: Runs) -> bytes:
        return b""


class SimHost:
    """One host: what outlives agents, and the agent of now."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.machine = FakeMachine(name, fault=self._fault, agent_alive=self._alive)
        self.machine.hooks = list(HOOKS)
        self.journals = SimJournals(world, self)
        self.rooms: dict[str, Room] = {}
        self.process = Process()
        self.process.alive = False
        self.receptions: dict[str, SimReception] = {}
        self.coordinator: Coordinator | None = None
        self.last_event: Event | None = None

    def _fault(self, act: str) -> None:
        if self.world.step(self, act) is Fault.FAIL and self._may_fail(act):
            raise DumpError(f"{act} failed on purpose")

    def _may_fail(self, act: str) -> bool:
        """Acts on the way there. What fails on the way back is a leftover, which a person is told of."""
        if self.world.source is self:
            return act in ("rooms.make", "network.fence", "engine.dump", "workload.hold", "network.remove")
        journal = self.journals.find(MIGRATION)
        on_the_way = journal is None or last_of(journal.records, Mark.HELD) is None
        return on_the_way and act in ("rooms.make", "network.fence", "network.add", "engine.restore")

    def _alive(self) -> bool:
        current = current_process.get()
        return current is None or current.alive

    def killed(self) -> bool:
        return self.coordinator is not None and self.coordinator.killed

    def start(self) -> None:
        """Begin a life: the journals are read, what is unfinished is settled."""
        self.process = Process()
        self.receptions = {}
        self.coordinator = None
        machine, world = self.machine, self.world
        network = FakeNetwork(machine)
        engine = SimEngine(self)

        async def describe() -> HostFacts:
            return HostFacts(
                self.name, __version__, "6.12.0", "x86_64", 4096, "4.2.1", "criu", (), 1 << 40, tuple(machine.local),
                devices=("eth0", "br0"),
                bridges=("br0",),
            )  # fmt: skip

        self.host = Host(
            FakeWorkload(machine),
            engine,
            network,
            FakeOwnNetworks(machine),
            SimRooms(self),
            FakeThrottle(machine),
            FakeOutcomes(machine),
            SimClock(world),
            describe,
            hooks=FakeHooks(machine),
        )
        self.arrivals = Arrivals(
            self.host, self.journals, self, self._receive, lambda _: self._peer(), NoPages(), everybody
        )
        for migration_id, journal in self.journals.by_id.items():
            if journal.records and not ended(journal.records):
                self.run(lambda key=migration_id, unfinished=journal: self._settle(key, unfinished))  # type: ignore[misc]

    def _receive(self, directory: Path, limit_bytes: int, expected_bytes: int) -> SimReception:
        reception = SimReception()
        self.receptions[directory.name] = reception
        return reception

    def _peer(self) -> SimPeer:
        return SimPeer(self.world, self, self.world.other(self))

    def arrived(self, reservation: Reservation) -> None:
        """`ArrivalObserver`."""

    def settled(self, migration_id: str, outcome: Outcome, error: PhaulError | None) -> None:
        """`ArrivalObserver`."""

    def emit(self, event: Event) -> None:
        """`EventSink`."""
        self.last_event = event

    async def migrate(self) -> None:
        """Be the source."""
        moving = () if self.world.own_network else (AddressRequest(ADDRESS.address, ADDRESS.prefix_length),)
        request = MigrationRequest(PID, "other", moving)
        self.coordinator = Coordinator(MIGRATION, request, self.host, self._peer(), self, self.journals.of(MIGRATION))
        try:
            await self.coordinator.run()
        except PhaulError:
            pass  # how it ended is what the world looks at

    async def _settle(self, migration_id: str, journal: MemoryJournal) -> None:
        while True:
            try:
                if last_of(journal.records, Mark.PLANNED):
                    await settle_source(migration_id, journal, self.host, self._peer())
                else:
                    arrival = await self.arrivals.recover(migration_id, journal)
                    await settle_destination(migration_id, journal, arrival, self.host, self._peer())
                return
            except PhaulError:
                await self.world.sleep(5)

    def run(self, act: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """Run something as this life of the agent."""

        async def whole() -> T:
            return await act()

        before = current_process.set(self.process)
        try:
            return asyncio.get_running_loop().create_task(whole())
        finally:
            current_process.reset(before)

    def kill(self, *, with_engine: bool = False) -> None:
        """SIGKILL the agent: nothing of it runs any more, each CRIU rolls back, unless it is killed as well."""
        self.process.alive = False
        for task in self.process.tasks:
            task.cancel()
        self.machine.kill_agent(with_engine=with_engine)
        for reception in self.receptions.values():
            reception.cancel()


@dataclass(eq=False)
class World:
    """Both hosts and what is between them.

    Args:
        plan: what goes wrong at which step.
        restart_after: steps after which a killed agent is started again, one for each death; then at once.
        own_network: the workload is not reached by an address of its host, but by a link of this network of its own.
    """

    plan: Mapping[int, Fault]
    restart_after: Sequence[int] = ()
    own_network: NetworkFacts | None = None
    now_seconds: float = 0.0
    count: int = 0
    cut: int = 0
    channel: SimChannel | None = None
    trace: list[str] = field(default_factory=list)
    violation: ViolationError | None = None

    def __post_init__(self) -> None:
        self.source, self.destination = SimHost(self, "a"), SimHost(self, "b")
        self.source.machine.trees[PID] = FakeTree(PID, b"", network=self.own_network)
        if self.own_network:
            self.source.machine.links = {LINK.outer}
        else:
            self.source.machine.local.append(ADDRESS)
        self._delays = iter(self.restart_after)
        self._restarts: list[tuple[int, int, SimHost]] = []
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def other(self, host: SimHost) -> SimHost:
        return self.destination if host is self.source else self.source

    def deliver_pages(self, migration_id: str) -> None:
        """The memory goes over the page channel, if there is still somebody at its other end."""
        channel, room = self.channel, self.destination.rooms.get(migration_id)
        if channel is None or room is None or not channel.process.alive or channel.reception.received.done():
            raise DumpError("the page channel broke")
        room.pages = True
        channel.reception.received.set_result(Received(0, (ReceivedImage("pagemap-77.img", (), ()),)))

    def step(self, host: SimHost, name: str) -> Fault | None:
        """Something is about to happen on a host. Kills, cancels, checks; gives the fault, for the caller to obey."""
        current = current_process.get()
        if current is not None and not current.alive:
            raise AgentKilledError(name)
        number, self.count = self.count, self.count + 1
        fault = self.plan.get(number)
        self.trace.append(f"{number} {host.name} {name}" + (f"  <-- {fault}" if fault else ""))
        if number > MOST_STEPS:
            self._violated("it does not come to an end")
        self.check()
        if fault is Fault.CANCEL:
            coordinator = self.source.coordinator
            if coordinator is not None and not coordinator.committed and self._migration is not None:
                self._migration.cancel()
        if fault in (Fault.KILL_SOURCE, Fault.KILL_BOTH):
            self._kill(self.source)
        if fault in (Fault.KILL_DESTINATION, Fault.KILL_BOTH):
            self._kill(self.destination)
        if fault is Fault.KILL_DESTINATION_AND_CRIU:
            self._kill(self.destination, with_engine=True)
        while self._restarts and self._restarts[0][0] <= self.count:
            heapq.heappop(self._restarts)[2].start()
        self.check()
        if current is not None and not current.alive:
            raise AgentKilledError(name)
        return fault

    def _kill(self, host: SimHost, *, with_engine: bool = False) -> None:
        if host.process.alive:
            host.kill(with_engine=with_engine)
            heapq.heappush(self._restarts, (self.count + next(self._delays, 0), next(self._order), host))

    def check(self) -> None:
        """I1 and I2."""
        states = [host.machine.state(PID) for host in (self.source, self.destination)]
        if states.count(TreeState.RUNNING) > 1:
            self._violated("two copies run")
        if self.own_network:
            self._check_links()
        alive = [state for state in states if state not in (TreeState.DEAD, TreeState.UNFINISHED)]
        room = self.destination.rooms.get(MIGRATION)
        if not alive and not (room and room.complete):
            self._violated("no copy is left, and no images for one")

    def _check_links(self) -> None:
        """Nobody answers on the wire where another copy runs, nor do two."""
        answering = [
            host for host in (self.source, self.destination) if host.machine.links and not host.machine.link_fences
        ]
        if len(answering) > 1:
            self._violated("two hosts answer on the wire")
        for host in answering:
            if self.other(host).machine.state(PID) is TreeState.RUNNING:
                self._violated(f"{host.name} answers on the wire for a copy that runs on the other host")

    def _violated(self, what: str) -> NoReturn:
        self.violation = self.violation or ViolationError(what)
        raise self.violation

    async def sleep(self, seconds: float) -> None:
        """Wait in virtual time."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_seconds + seconds, next(self._order), waiter))
        await waiter

    async def run(self) -> None:
        """Let a migration go through all this, until nobody has anything left to do."""
        asyncio.get_running_loop().set_task_factory(cast("Any", _task_in_process))
        self._migration: asyncio.Task[None] | None = None
        self.source.start()
        self.destination.start()
        self._migration = self.source.run(self.source.migrate)
        while True:
            before = self.count
            for _ in range(QUIET_TURNS):
                await asyncio.sleep(0)
            if self.violation is not None:
                raise self.violation
            if self.count != before:
                continue
            if self._restarts:
                heapq.heappop(self._restarts)[2].start()
            elif not self._pass_time():
                break
        self._raise_violations()
        self._check_end()
        for host in (self.source, self.destination):
            host.kill()
        await asyncio.sleep(0)

    def _pass_time(self) -> bool:
        while self._sleepers:
            at, _, waiter = heapq.heappop(self._sleepers)
            if not waiter.done():
                self.now_seconds = max(self.now_seconds, at)
                waiter.set_result(None)
                return self.now_seconds < MOST_VIRTUAL_SECONDS
        return False

    def _raise_violations(self) -> None:
        for host in (self.source, self.destination):
            for task in host.process.tasks:
                error = task.exception() if task.done() and not task.cancelled() else None
                if error is not None and not isinstance(error, PhaulError | AgentKilledError | ViolationError):
                    raise error

    def _check_end(self) -> None:
        """I4, and that it is over: one copy runs, under its address, and nothing of the migration is left."""
        running = [host for host in (self.source, self.destination) if host.machine.state(PID) is TreeState.RUNNING]
        if len(running) != 1:
            self._violated(f"{len(running)} copies run at the end")
        for host in (self.source, self.destination):
            should_have = [ADDRESS] if host is running[0] and not self.own_network else []
            links = {LINK.outer} if host is running[0] and self.own_network else set()
            if host.machine.links != links or host.machine.link_fences:
                self._violated(f"{host.name} has links {host.machine.links}, fences {host.machine.link_fences}")
            if host.machine.local != should_have:
                self._violated(f"{host.name} has the addresses {host.machine.local}")
            if host.machine.fences or host.rooms:
                self._violated(f"{host.name} has left fences {host.machine.fences} and rooms {list(host.rooms)}")
            for journal in host.journals.by_id.values():
                if journal.records and not ended(journal.records):
                    self._violated(f"the journal of {host.name} ends with {journal.records[-1].mark}")
            if any(journal.records for journal in host.journals.by_id.values()):
                ending = Stage.POST_RESUME if running[0] is self.destination else Stage.ROLLBACK
                if not ran_as_it_ended(host.machine.hooks_ran, ending):
                    self._violated(f"the hooks that {host.name} ran were {host.machine.hooks_ran}")


def _task_in_process(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> Any:
    """Tasks started by an agent die with it."""
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
    process = current_process.get()
    if process is not None:
        process.tasks.add(task)
        task.add_done_callback(_look_away)
    return task


def _look_away(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
