"""The migration itself, from the source's side: one column of steps, each with its undo beside it.

Runs in the source's agent (`agent.outgoing` starts it as a task), because it holds the frozen tasks: rolling back needs
neither the network nor the person's terminal. Decides the order of things and does none of them itself.

The rule that makes it safe: the death of the source tree is the commit. The tree is killed only when the destination
holds a complete, restored copy, and the destination lets that run only when it was told that the tree is dead.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from phaul.errors import (
    CancelledByUserError,
    DefectError,
    DumpError,
    PhaulError,
    SwitchoverError,
    UnreachableError,
)
from phaul.migration import lazy, new_identity, preflight
from phaul.migration.account import account, learn, started
from phaul.migration.both_hooks import BothHooks
from phaul.migration.check import Allowed, check, every_workload
from phaul.migration.events import (
    EventSink,
    MigrationReport,
    ModeChosen,
    Outcome,
    Phase,
    PhaseStarted,
    Role,
    Warning,
)
from phaul.migration.facts import AddressFacts, MigrationRequest, Mode, Severity, WorkloadFacts
from phaul.migration.hooks import Stage
from phaul.migration.host import Host
from phaul.migration.interfaces import HeldDump, TreeHandle
from phaul.migration.journal import Data, Journal, Mark
from phaul.migration.limits import Limits
from phaul.migration.mode import choose
from phaul.migration.peer import PeerAgent
from phaul.migration.plan import dump_request, plan, reservation
from phaul.migration.progress import tell_progress
from phaul.migration.recovery import Word
from phaul.migration.resuming import resume
from phaul.migration.rounds import PreCopy
from phaul.migration.sending import Sending
from phaul.migration.timeline import Timeline
from phaul.migration.undo import UndoStack, as_undo, end, rolled_back, see_through
from phaul.migration.verification import Verification
from phaul.migration.wire import SourceWire
from phaul.units import MIB

DEAD_SECONDS = 10.0  # for the kernel to end a tree that was killed
SMALL_IMAGES_BYTES = 256 * MIB  # room on the source for what is not memory: pipes, sockets' queues, ghost files


class Coordinator:
    """One migration of one workload to one destination.

    Invariant: until `committed`, the workload can be run on at the source, and on any failure it is. From then on only
    the destination may run it.
    """

    def __init__(
        self,
        migration_id: str,
        request: MigrationRequest,
        host: Host,
        peer: PeerAgent,
        events: EventSink,
        journal: Journal,
        allowed: Allowed = every_workload,
    ) -> None:
        self._journal, self._allowed = journal, allowed
        self._id, self._request = migration_id, request
        self._host, self._peer = host, peer
        self._events = events
        self._timeline = Timeline(host.clock)
        self._undo = UndoStack()
        self._limits = Limits(host.clock, lambda: not self.committed)
        self._warnings: list[str] = []
        self._reason = ""  # for undoing everything
        self._rounds: PreCopy | None = None
        self._hooks = BothHooks(migration_id, request, host, peer, events, journal, self._warn)
        self.committed = self.killed = False

    async def run(self) -> MigrationReport:
        """Migrate. Returns when the destination runs the workload and the source is tidied up.

        Raises `PreflightError` or `UnreachableError` with nothing touched, a `RolledBackError` with the workload
        running on the source, `LostError` with the images kept. Cancelling the task rolls back until `committed`;
        past that the caller must not cancel.
        """
        self._limits.begin("the migration", self._request.timeout_seconds)
        try:
            return await self._migrate()
        except asyncio.CancelledError:
            why = self._limits.passed or CancelledByUserError("the migration was cancelled")
            raise await self._roll_back(why) from None
        except PhaulError as error:
            if self.committed or not self._undo:
                raise
            raise await self._roll_back(error) from error
        except Exception as error:
            if self.committed:
                raise
            raise await self._roll_back(DefectError(f"phaul failed: {type(error).__name__}: {error}")) from error
        finally:
            self._limits.end()

    async def _migrate(self) -> MigrationReport:
        await self._enter(Phase.PREFLIGHT)
        facts, addresses = await self._preflight()
        identity = await self._host.workload.identify(facts.root_pid)
        planned = plan(facts, addresses, self._request, identity)
        self._wire = SourceWire.planned(self._host, self._id, planned)
        await self._journal.write(Mark.PLANNED, planned | self._hooks.as_data())

        await self._enter(Phase.PREPARE)
        await self._prepare(facts, addresses)

        if self._mode is Mode.PRE_COPY:
            await self._enter(Phase.PRECOPY)
            await self._precopy(facts)

        await self._hooks.run(Stage.PRE_DUMP)
        await self._enter(Phase.FREEZE)
        held = await self._freeze(facts, addresses)
        tree = await self._keeper.hold()
        self._undo.add("the tasks' standing still", as_undo(tree.release))
        await self._hooks.run(Stage.POST_DUMP)

        await self._enter(Phase.TRANSFER)
        with self._timeline.step("send images"):
            image_bytes, waiting = await asyncio.gather(
                self._peer.send_images(self._id, self._images), self._wire.stranded(facts)
            )

        if self._request.leave_running:
            return await self._leave_running(facts, tree, image_bytes)

        await self._enter(Phase.RESTORE)
        await self._hooks.run(Stage.PRE_RESTORE)
        verified = asyncio.create_task(self._verify(tree))
        self._undo.add("the comparison of the memory", lambda: end(verified))
        await self._hooks.run(Stage.SETUP_NAMESPACES, there=False)  # the destination's run within its restore
        with self._timeline.step("restore", Role.DESTINATION):
            copy = await self._peer.restore(self._id, tuple(dict.fromkeys((*self._unaccepted, *waiting))))
        self._hooks.tell(Role.DESTINATION, copy.hooks)
        await verified
        await self._hooks.run(Stage.POST_RESTORE)

        await self._enter(Phase.SWITCHOVER)
        await self._journal.write(Mark.SWITCHING)
        with self._timeline.step("move addresses"):
            self._undo.add(self._wire.name, self._wire.take_back)
            await self._wire.give_up()  # the destination has had the addresses since before its restore, fenced
        await self._hooks.run(Stage.SWITCHOVER)

        await self._enter(Phase.COMMIT)
        if (word := await self._peer.word(self._id)) is not Word.HELD:
            raise SwitchoverError(f"{self._peer.name} does not hold the copy any more: {word}")
        await self._commit(tree)
        self._timeline.killed_us = self._host.clock.monotonic_us()

        try:
            await self._enter(Phase.RESUME)
            resumed = await resume(self._peer, self._id, self._host.clock, self._warn)
            self._warnings += resumed.warnings
            self._timeline.resume(resumed.running_for_us)
            self._hooks.resumed()
            await self._note(Mark.RESUMED)
        finally:
            await self._enter(Phase.CLEANUP)
            await self._clean_up(held, tree)
        await self._hooks.settled()
        await self._note(Mark.ENDED, {"outcome": str(Outcome.COMPLETED)})
        if self._rounds:
            before = self._sent_before
            await learn(self._rounds, self._sending, before, self._dump_us, self._timeline, lazily=copy.lazy)
        warnings = tuple(self._warnings)
        return account(self._timeline, facts, addresses, copy, image_bytes, self._rounds, self._sending, warnings)

    async def _preflight(self) -> tuple[WorkloadFacts, tuple[AddressFacts, ...]]:
        found = await check(self._request, self._host, self._peer, self._allowed)
        facts = found.workload
        self._events.emit(started(facts, self._peer.name))
        refusals = [problem for problem in found.problems if problem.severity is Severity.REFUSES]
        if refusals:
            raise preflight.refusal(refusals)
        for problem in found.problems:
            self._warn(problem.message)
        self._macs = new_identity.macs(self._request, facts.network)
        self._network_there = new_identity.at_destination(self._request, facts.network, found.destination, self._id)
        self._host_name = found.source.host_name
        self._lazily = lazy.helps(facts.memory_bytes, found.destination.features)
        self._mode, reason = choose(self._request, facts, found.source)
        self._events.emit(ModeChosen(self._mode, reason))
        self._request = replace(self._request, addresses=found.addresses)
        addresses = preflight.resolve_addresses(self._request, found.source)
        self._hooks.found(facts, found, preflight.destination_addresses(self._request, addresses))
        await self._hooks.preflight()
        return facts, addresses

    async def _prepare(self, facts: WorkloadFacts, addresses: tuple[AddressFacts, ...]) -> None:
        """Room on both hosts, a keeper and a connection for the memory, before anything is frozen."""
        self._verification = Verification(self._id, facts, self._host, self._peer)
        self._undo.add("the hashing of the memory", self._verification.end)
        self._undo.add("images on this host", lambda: self._host.rooms.release(self._id))
        self._images = self._hooks.images = await self._host.rooms.make(self._id, SMALL_IMAGES_BYTES)
        self._keeper = await self._host.workload.keeper(facts)
        self._undo.add("the keeper", self._keeper.close)
        self._undo.add("the reservation on the destination", self._abort_destination)
        channel = await self._peer.prepare(
            reservation(
                self._id,
                facts,
                self._request,
                addresses=preflight.destination_addresses(self._request, addresses),
                network=self._network_there,
                source_host=self._host_name,
                source_port=self._host.peer_port(),
                destination_host=self._hooks.destination_host,
            )
        )
        self._undo.add("the page channel", as_undo(channel.close))
        self._sending = await Sending.over(channel, self._request, facts, self._host, self._peer)
        await self._keeper.ready()

    async def _precopy(self, facts: WorkloadFacts) -> None:
        """Rounds, until what is left is worth a freeze. They may end on another page channel than they began on."""
        self._rounds = PreCopy(
            self._id,
            self._request,
            facts,
            self._images,
            self._host,
            self._peer,
            self._hooks.destination_host,
            self._sending,
            self._verification,
            self._lazily,
            self._journal,
            self._events,
            self._undo,
        )
        await self._journal.write(Mark.PRECOPYING)
        self._undo.add("the workload's running on", self._keeper.run_again)
        await self._rounds.run(self._limits.left_us)
        self._sending = self._rounds.sending

    async def _freeze(self, facts: WorkloadFacts, addresses: tuple[AddressFacts, ...]) -> HeldDump:
        """The final dump, its memory going through the page channel; afterwards every task is frozen and held."""
        self._before_freeze = len(self._undo)
        self._undo.add("rules that CRIU made", self._wire.remove_locks)
        self._undo.add("the fence on this host", self._wire.unfence)

        async def about_to_freeze(engine_pid: int) -> None:
            await self._keeper.watch(engine_pid)
            await self._verification.ready()
            self._limits.begin("the freeze", self._request.freeze_timeout_seconds)
            await self._journal.write(Mark.FREEZING)
            if self._rounds:
                await self._rounds.full_speed()
            await self._wire.save(self._images)
            # The kernel gives up a half-made connection whose SYN-ACK is held back (net/ipv4/inet_connection_sock.c,
            # reqsk_timer_handler): behind the fence it may not be seen any more.
            self._unaccepted = await self._wire.stranded(facts)
            await self._wire.fence()

        await self._sending.begin(frozen=True)
        self._sent_before = self._sending.channel.sent_bytes()
        channel = self._sending.channel
        request = dump_request(
            self._id,
            facts,
            self._request,
            addresses=addresses,
            images=self._images,
            page_channel_fd=channel.fileno(),
            parent=self._rounds.newest if self._rounds else None,
            macs=self._macs,
            readdressing=self._wire.change,
        )
        # Undone before the fence is lifted: no packet wakes a task before its connections are cured.
        self._undo.add("the workload's running on", self._keeper.run_again)
        progress = asyncio.create_task(tell_progress(channel, facts.memory_bytes, self._host.clock, self._events))
        dump = self._host.engine.dump(request, about_to_freeze)
        try:
            held = await dump.__aenter__()
        finally:
            progress.cancel()
        # The context is left by an undo or by passing the gate, whichever comes: both outlive this function.
        self._undo.add("the frozen workload", lambda: dump.__aexit__(None, None, None))
        self._timeline.frozen_us = held.frozen_since_us
        self._dump_us = self._host.clock.monotonic_us() - held.frozen_since_us
        self._timeline.add_step("dump", held.frozen_since_us, self._dump_us, Role.SOURCE)
        self._dump = dump
        return held

    async def _verify(self, tree: TreeHandle) -> None:
        """Compare what arrived with the frozen tree; runs beside the restore."""
        with self._timeline.step("verify memory"):
            await self._verification.run(tree)

    async def _leave_running(self, facts: WorkloadFacts, tree: TreeHandle, image_bytes: int) -> MigrationReport:
        """The dump of a workload that goes on: it does so as soon as its memory was compared, and before all else."""
        await self._verify(tree)
        if leftovers := await see_through(self._undo.unwind(but=self._before_freeze)):
            raise DumpError("the workload could not be let run as it was", detail="\n".join(leftovers))
        self._limits.end()
        self._timeline.run_on()
        await self._enter(Phase.RESTORE)
        copy = await self._peer.restore(self._id)
        self.committed = True
        await self._enter(Phase.CLEANUP)
        for leftover in await self._undo.unwind():
            self._warn(f"left behind: {leftover}")
        await self._note(Mark.ENDED, {"outcome": str(Outcome.COMPLETED)})
        return account(self._timeline, facts, (), copy, image_bytes, None, self._sending, tuple(self._warnings))

    async def _commit(self, tree: TreeHandle) -> None:
        """Kill the tree, once it is on disk that this will happen. From the first line on no cancel is heard."""
        if not tree.stands_still():
            raise DumpError("the frozen workload ran on: its CRIU was killed, and somebody sent it SIGCONT")
        if not self._request.closes_connections:  # there clients are to hear of the end
            tree.silence()  # a rollback cures them
        self.committed = True
        try:
            await self._journal.write(Mark.COMMIT, tree.identity.as_data())
        except PhaulError:
            self.committed = False  # nobody was killed: this is a failure like any other
            raise
        tree.kill()
        self.killed = True

    async def _clean_up(self, held: HeldDump, tree: TreeHandle) -> None:
        """Whatever fails here is a warning: the workload runs on the destination."""
        self._undo.forget()
        last = UndoStack()
        last.add("images on this host", lambda: self._host.rooms.release(self._id))
        last.add("what answers for it on this host", self._wire.leave)
        last.add("rules that CRIU made", self._wire.remove_locks)
        if self._rounds:
            last.add("the workload's CPU quota", self._rounds.put_back)
        last.add("the page channel", as_undo(self._sending.channel.close))
        last.add("the keeper", self._keeper.close)
        if self._request.closes_connections:  # not before the fence: clients are to hear of the end
            last.add("the dead workload", lambda: tree.wait_dead(DEAD_SECONDS))
        last.add("CRIU", lambda: self._dump.__aexit__(None, None, None))
        last.add("CRIU", held.release_killed)
        for leftover in await last.unwind():
            self._warn(f"left behind on the source: {leftover}")

    async def _roll_back(self, error: PhaulError) -> PhaulError:
        """Undo everything, however often the task is cancelled meanwhile; give the error to raise."""
        return rolled_back(error, await see_through(self._unwind(error)))

    async def _unwind(self, error: PhaulError) -> tuple[str, ...]:
        if not self._journal.records:
            return ()  # nothing was planned yet, so there is nothing to undo and nothing to remember
        await self._note(Mark.ROLLING_BACK)
        self._reason = error.message
        leftovers = await self._undo.unwind()
        await self._hooks.rolled_back(error.message)
        if not leftovers:
            await self._note(Mark.ENDED, {"outcome": str(Outcome.ROLLED_BACK)})
        return leftovers

    async def _note(self, mark: Mark, data: Data | None = None) -> None:
        """Journal what recovery would find out without it as well: failing to is no reason to fail."""
        try:
            await self._journal.write(mark, data)
        except PhaulError as error:
            self._warn(error.message)

    async def _abort_destination(self) -> None:
        if self.committed:
            return  # a dump that stands
        try:
            aborted = await self._peer.abort(self._id, self._reason, self._hooks.rollback_seconds)
        except UnreachableError as error:
            self._warn(f"{error.message}; it will ask this host what became of the migration, and undo its part")
            return
        self._hooks.undone_there = aborted.hooks
        if aborted.leftovers:
            raise PhaulError("; ".join(aborted.leftovers))

    async def _enter(self, phase: Phase) -> None:
        self._timeline.enter(phase)
        self._events.emit(PhaseStarted(phase))
        await self._host.reached(Role.SOURCE, phase)

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._events.emit(Warning(message))
