"""The migration itself, from the source's side: one column of steps, each with its undo beside it.

Runs in the source's agent (`agent.outgoing` starts it as a task), because it holds the frozen tasks: rolling back needs
neither the network nor the person's terminal. Decides the order of things and does none of them itself.

The rule that makes it safe: the death of the source tree is the commit. The tree is killed only when the destination
holds a complete, restored copy, and the destination lets that run only when it was told that the tree is dead.
"""

from __future__ import annotations

import asyncio
from functools import partial

from phaul.errors import (
    CancelledByUserError,
    DefectError,
    DumpError,
    InDoubtError,
    LeftoversError,
    LostError,
    PhaulError,
    RolledBackError,
    SwitchoverError,
    TransferError,
    UnreachableError,
)
from phaul.migration import preflight
from phaul.migration.check import check
from phaul.migration.events import (
    EventSink,
    MigrationReport,
    Outcome,
    Phase,
    PhaseStarted,
    Role,
    Started,
    Warning,
)
from phaul.migration.facts import (
    AddressFacts,
    MigrationRequest,
    Severity,
    WorkloadFacts,
)
from phaul.migration.host import Host
from phaul.migration.interfaces import DumpRequest, HeldDump, TreeHandle
from phaul.migration.journal import Data, Journal, Mark
from phaul.migration.limits import Limits
from phaul.migration.peer import PageChannel, PeerAgent, Reservation, RestoredCopy
from phaul.migration.plan import fenced, has_connections, plan
from phaul.migration.progress import tell_progress
from phaul.migration.recovery import Word
from phaul.migration.timeline import Timeline
from phaul.migration.undo import UndoStack, as_undo, end
from phaul.units import MIB

SMALL_IMAGES_BYTES = 256 * MIB  # room on the source for what is not memory: pipes, sockets' queues, ghost files
RESUME_BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # the last one again and again: past COMMIT nobody gives up


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
    ) -> None:
        self._journal = journal
        self._id = migration_id
        self._request = request
        self._host = host
        self._peer = peer
        self._events = events
        self._timeline = Timeline(host.clock)
        self._undo = UndoStack()
        self._limits = Limits(host.clock, lambda: not self.committed)
        self._warnings: list[str] = []
        self.committed = False
        self.killed = False

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
        await self._journal.write(Mark.PLANNED, plan(facts, addresses, self._request, identity))

        await self._enter(Phase.PREPARE)
        channel = await self._prepare(facts, addresses)

        await self._enter(Phase.FREEZE)
        held = await self._freeze(facts, addresses, channel)
        tree = await self._keeper.hold()
        self._undo.add("the tasks' standing still", as_undo(tree.release))

        await self._enter(Phase.TRANSFER)
        with self._timeline.step("send images"):
            image_bytes = await self._peer.send_images(self._id, self._images)

        await self._enter(Phase.RESTORE)
        verified = asyncio.create_task(self._verify(tree))
        self._undo.add("the comparison of the memory", lambda: end(verified))
        with self._timeline.step("restore", Role.DESTINATION):
            copy = await self._peer.restore(self._id)
        await verified

        await self._enter(Phase.SWITCHOVER)
        await self._journal.write(Mark.SWITCHING)
        with self._timeline.step("move addresses"):
            await self._give_up(addresses)

        await self._enter(Phase.COMMIT)
        if (word := await self._peer.word(self._id)) is not Word.HELD:
            raise SwitchoverError(f"{self._peer.name} does not hold the copy any more: {word}")
        await self._commit(tree)
        self._timeline.killed_us = self._host.clock.monotonic_us()

        try:
            await self._enter(Phase.RESUME)
            with self._timeline.step("resume", Role.DESTINATION):
                await self._resume()
            self._timeline.resumed_us = self._host.clock.monotonic_us()
            await self._note(Mark.RESUMED)
        finally:
            await self._enter(Phase.CLEANUP)
            await self._clean_up(facts, held, channel)
        await self._note(Mark.ENDED, {"outcome": str(Outcome.COMPLETED)})
        return self._report(facts, addresses, copy, image_bytes)

    async def _preflight(self) -> tuple[WorkloadFacts, tuple[AddressFacts, ...]]:
        report = await check(self._request, self._host, self._peer)
        facts = report.workload
        self._events.emit(
            Started(
                root_pid=facts.root_pid,
                command=facts.tasks[0].command,
                destination=self._peer.name,
                processes=len(facts.tasks),
                memory_bytes=facts.memory_bytes,
                connections=len(facts.connections),
            )
        )
        refusals = [problem for problem in report.problems if problem.severity is Severity.REFUSES]
        if refusals:
            raise preflight.refusal(refusals)
        for problem in report.problems:
            self._warn(problem.message)
        return facts, preflight.resolve_addresses(self._request, report.source)

    async def _prepare(self, facts: WorkloadFacts, addresses: tuple[AddressFacts, ...]) -> PageChannel:
        """Room on both hosts, a keeper and a connection for the memory, before anything is frozen."""
        self._undo.add("images on this host", lambda: self._host.rooms.release(self._id))
        self._images = await self._host.rooms.make(self._id, SMALL_IMAGES_BYTES)
        self._keeper = await self._host.workload.keeper(facts)
        self._undo.add("the keeper", self._keeper.close)
        self._undo.add("the reservation on the destination", self._abort_destination)
        channel = await self._peer.prepare(
            Reservation(
                migration_id=self._id,
                source_host=(await self._host.describe()).host_name,
                root_pid=facts.root_pid,
                command=facts.tasks[0].command,
                memory_bytes=facts.memory_bytes,
                addresses=preflight.destination_addresses(self._request, addresses),
                keep_connections=has_connections(facts),
                shell_job=facts.needs_shell_job,
                source_port=self._host.peer_port(),
                source_peer="",
            )
        )
        self._undo.add("the page channel", as_undo(channel.close))
        await self._keeper.ready()
        return channel

    async def _freeze(
        self, facts: WorkloadFacts, addresses: tuple[AddressFacts, ...], channel: PageChannel
    ) -> HeldDump:
        """The final dump, its memory going through the page channel; afterwards every task is frozen and held."""
        self._undo.add("rules that CRIU made", lambda: self._remove_locks(facts))
        self._undo.add("the fence on this host", lambda: self._host.network.unfence(self._id))

        async def about_to_freeze() -> None:
            self._limits.begin("the freeze", self._request.freeze_timeout_seconds)
            await self._journal.write(Mark.FREEZING)
            if addresses:
                await self._host.network.fence(self._id, addresses)

        request = DumpRequest(
            migration_id=self._id,
            root_pid=facts.root_pid,
            images=self._images,
            page_channel_fd=channel.fileno(),
            keep_connections=has_connections(facts),
            shell_job=facts.needs_shell_job,
            drop_unaccepted=self._request.drop_unaccepted,
            fenced=fenced(facts, addresses),
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
        now_us = self._host.clock.monotonic_us()
        self._timeline.add_step("dump", held.frozen_since_us, now_us - held.frozen_since_us, Role.SOURCE)
        self._dump = dump
        return held

    async def _verify(self, tree: TreeHandle) -> None:
        """Compare what arrived with the memory as it lies in the frozen tree; runs beside the restore."""
        with self._timeline.step("verify memory"):
            images = await self._peer.received_pages(self._id)
            theirs = self._peer.page_digests(self._id)
            fetch = partial(self._peer.received_chunk, self._id)
            differing = await self._host.workload.differing(tree, images, theirs, fetch)
        if differing:
            raise TransferError(
                f"the memory was damaged on its way: {', '.join(differing)} on the destination differs from the source",
                hint="Nothing of it was used. If it happens again, test the memory and network of both hosts.",
            )

    async def _give_up(self, addresses: tuple[AddressFacts, ...]) -> None:
        """Take the addresses off this host. The destination has had them since before its restore, behind a fence."""
        if not addresses:
            return

        async def take_back() -> None:
            await self._host.network.add(addresses)
            await self._host.network.unfence(self._id)
            await self._host.network.announce(addresses)

        self._undo.add("the addresses " + ", ".join(map(str, addresses)), take_back)
        try:
            await self._host.network.remove(addresses)
        except PhaulError as error:
            raise SwitchoverError(f"the addresses could not be taken off the source: {error.message}") from error

    async def _commit(self, tree: TreeHandle) -> None:
        """Kill the tree, once it is on disk that this will happen. From the first line on no cancel is heard."""
        if not tree.stands_still():
            raise DumpError("the frozen workload ran on: its CRIU was killed, and somebody sent it SIGCONT")
        self.committed = True
        try:
            await self._journal.write(Mark.COMMIT, tree.identity.as_data())
        except PhaulError:
            self.committed = False  # nobody was killed: this is a failure like any other
            raise
        tree.kill()
        self.killed = True

    async def _remove_locks(self, facts: WorkloadFacts) -> None:
        await self._host.network.remove_engine_locks(facts.root_pid, facts.connections)

    async def _resume(self) -> None:
        """Tell the destination to run the copy, until it has answered: no other host may run it any more."""
        attempt = 0
        while True:
            try:
                self._warnings += await self._peer.resume(self._id)
                return
            except UnreachableError as error:
                delay_seconds = RESUME_BACKOFF_SECONDS[min(attempt, len(RESUME_BACKOFF_SECONDS) - 1)]
                if attempt == 0:
                    self._warn(f"the destination does not answer ({error.message}); it is asked again until it does")
                attempt += 1
                await self._host.clock.sleep(delay_seconds)
            except PhaulError as error:
                if isinstance(error, LostError | InDoubtError):
                    raise
                raise LostError(
                    f"the destination could not run the workload: {error.message}",
                    hint=f"Its images are kept on {self._peer.name}. {error.hint}",
                    detail=error.detail,
                ) from error

    async def _clean_up(self, facts: WorkloadFacts, held: HeldDump, channel: PageChannel) -> None:
        """Whatever fails here is a warning: the workload runs on the destination."""
        self._undo.forget()
        last = UndoStack()
        last.add("images on this host", lambda: self._host.rooms.release(self._id))
        last.add("the fence on this host", lambda: self._host.network.unfence(self._id))
        last.add("rules that CRIU made", lambda: self._remove_locks(facts))
        last.add("the page channel", as_undo(channel.close))
        last.add("the keeper", self._keeper.close)
        last.add("CRIU", lambda: self._dump.__aexit__(None, None, None))
        last.add("CRIU", held.release_killed)
        for leftover in await last.unwind():
            self._warn(f"left behind on the source: {leftover}")

    async def _roll_back(self, error: PhaulError) -> PhaulError:
        """Undo everything, however often the task is cancelled meanwhile; give the error to raise."""
        unwinding = asyncio.ensure_future(self._unwind())
        while not unwinding.done():
            try:
                await asyncio.shield(unwinding)
            except asyncio.CancelledError:
                continue
        leftovers = unwinding.result()
        if leftovers:
            result: PhaulError = LeftoversError(
                f"{error.message}; the workload runs on the source, but something was left behind",
                hint=error.hint,
                detail="\n".join(filter(None, [error.detail, *leftovers])),
            )
        elif isinstance(error, RolledBackError | DefectError):
            result = error
        else:
            result = RolledBackError(error.message, hint=error.hint, detail=error.detail)
        return result

    async def _unwind(self) -> tuple[str, ...]:
        if not self._journal.records:
            return ()  # nothing was planned yet, so there is nothing to undo and nothing to remember
        await self._note(Mark.ROLLING_BACK)
        leftovers = await self._undo.unwind()
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
        try:
            leftovers = await self._peer.abort(self._id, "the source rolled back")
        except UnreachableError as error:
            self._warn(f"{error.message}; it will ask this host what became of the migration, and undo its part")
            return
        if leftovers:
            raise PhaulError("; ".join(leftovers))

    async def _enter(self, phase: Phase) -> None:
        self._timeline.enter(phase)
        self._events.emit(PhaseStarted(phase))
        await self._host.reached(Role.SOURCE, phase)

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._events.emit(Warning(message))

    def _report(
        self, facts: WorkloadFacts, addresses: tuple[AddressFacts, ...], copy: RestoredCopy, image_bytes: int
    ) -> MigrationReport:
        timeline = self._timeline
        return MigrationReport(
            new_pid=copy.pid,
            downtime_us=timeline.resumed_us - timeline.frozen_us,
            freeze_us=timeline.killed_us - timeline.frozen_us,
            total_us=timeline.resumed_us - timeline.started_us,
            memory_bytes=copy.page_bytes,
            image_bytes=image_bytes,
            phases=timeline.phases(),
            steps=timeline.steps(),
            warnings=tuple(self._warnings),
            processes=len(facts.tasks),
            connections=len(facts.connections),
            addresses=tuple(map(str, addresses)),
        )
