"""A migration from the destination's side: what is held ready, received, restored, and then run or thrown away.

`agent.peer_service` calls one `Arrival` per migration, step by step as the source asks; repeating a step gives the
first answer again. Decides nothing on its own: a copy runs only when the source said that its tree is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from phaul.errors import DefectError, LostError, PhaulError, RestoreError
from phaul.migration import lazy
from phaul.migration.arrival_hooks import ArrivalHooks
from phaul.migration.engine_requests import RestoreRequest
from phaul.migration.events import Outcome, Phase, Role
from phaul.migration.facts import ConnectionFacts
from phaul.migration.guard import Guard
from phaul.migration.hooks import Stage
from phaul.migration.host import Host
from phaul.migration.interfaces import HeldRestore, TreeIdentity
from phaul.migration.journal import Journal, Mark, last_of
from phaul.migration.lazy import Loader, Loading, LoadingState
from phaul.migration.peer import Aborted, Reservation, RestoredCopy
from phaul.migration.recovery import Tree
from phaul.migration.reserving import room_bytes
from phaul.migration.undo import UndoStack
from phaul.migration.wire import DestinationWire, announce_again_seconds
from phaul.units import MIB

SMALL_IMAGES_BYTES = 256 * MIB  # room for what is not memory

REAPED_LOOKS = 500  # for the kernel to free a killed copy, and for us to reap it
REAPED_LOOK_SECONDS = 0.02  # between two looks
RUNS_LOOKS = 5  # that must all find a copy running
LOADED_LOOK_SECONDS = 0.05  # between two looks at a copy that runs and whose pages are being loaded
LAZY = "lazy"  # in a HELD record: a loader puts the pages of this copy in place
UNACCEPTED = "unaccepted"  # in a HELD record: the connections that this copy does not have


class Arrival:
    """One migration coming in.

    Invariant: the copy is held or absent until `resume`; after `resume` or `abort` has begun the other is refused.
    Owns the image directory, the fence, the addresses and the held restore until one of the two has ended.
    """

    def __init__(self, reservation: Reservation, host: Host, journal: Journal) -> None:
        self._journal = journal
        self.reservation = reservation
        self.phase = Phase.PREPARE
        self._host = host
        self._undo = UndoStack()
        self._wire = DestinationWire(host, reservation)
        self._held: HeldRestore | None = None
        self._gate: AbstractAsyncContextManager[HeldRestore] | None = None
        self._copy: RestoredCopy | None = None
        self._announcing: asyncio.Task[None] | None = None
        self._cleaning: asyncio.Task[None] | None = None
        self._loader: Loader | None = None
        self._guard: Guard | None = None
        self.loading: Loading | None = None  # of a copy that runs, until all its pages are in place
        self.lost: Callable[[LostError], None] = lambda _: None  # told when they never will be
        self.images = Path()
        self.hooks = ArrivalHooks(host, reservation, journal, lambda: self.images)
        self._warnings: list[str] = []
        self.resumed = False
        self.running_since_us = 0  # 0 also where an agent before this one has let it run
        self.aborted = False

    @property
    def _id(self) -> str:
        return self.reservation.migration_id

    @property
    def may_be_the_last_copy(self) -> bool:
        """Whether the source has been, or may have been, told that a complete copy is held here."""
        return not self.aborted and last_of(self._journal.records, Mark.HELD) is not None

    @property
    def ended(self) -> bool:
        """Whether the source has decided, either way."""
        return self.resumed or self.aborted

    async def prepare(self) -> Path:
        """PREPARE: make the image directory and put the addresses behind a fence; give the directory.

        The addresses come this early because nothing is frozen yet: what fails here costs nobody a pause.
        """
        await self._journal.write(Mark.RESERVED, dataclasses.asdict(self.reservation))
        self._undo.add("images on the destination", lambda: self._host.rooms.release(self._id))
        self.images = await self._host.rooms.make(
            self._id, room_bytes(self.reservation.memory_bytes) + SMALL_IMAGES_BYTES
        )
        await self._wire.take(self._undo)
        await self._prepare_helpers()
        await self._host.reached(Role.DESTINATION, Phase.PREPARE)
        return self.images

    async def restore(self, page_bytes: int, unaccepted: Sequence[ConnectionFacts] = ()) -> RestoredCopy:
        """RESTORE: all images are there, `page_bytes` of them pages; restore, hold at the gate.

        `unaccepted` are connections that the copy does not have. Raises with nothing held; the images stay.
        """
        if self.aborted:
            raise RestoreError("this migration was aborted on the destination")
        if self._copy is not None:
            return self._copy
        self.phase = Phase.RESTORE
        self._wire.unaccepted = tuple(unaccepted)
        held = await self._hold_lazily() or await self._hold()
        self._undo.add("the restored copy", self._discard)
        await self.hooks.restored()
        await self._host.reached(Role.DESTINATION, Phase.RESTORE)
        hooks, is_lazy = self.hooks.of_restore, self._loader is not None
        await self._record_held(held, is_lazy=is_lazy)
        self._copy = RestoredCopy(held.tree.root_pid, page_bytes, held.tree.restore_us, hooks, is_lazy)
        return self._copy

    async def resume(self) -> tuple[str, ...]:
        """RESUME: the source tree is dead. Pass the gate, lift the fence on the way, tell the neighbours.

        Should the copy have gone, it is restored again from the images. Raises `LostError` when that fails as well,
        with the images kept.
        """
        if self.aborted or not last_of(self._journal.records, Mark.HELD):
            raise DefectError("the source asked to resume a migration that is not held here")
        if self.resumed:
            return ()
        self.phase = Phase.RESUME
        self.resumed = self.hooks.decided = True
        await self._journal.write(Mark.RESUMING)
        self._undo.forget()
        await self._host.reached(Role.DESTINATION, Phase.RESUME)
        await self._run_copy()
        await self._host.reached(Role.DESTINATION, Phase.CLEANUP)
        await self._journal.write(Mark.RUNNING)
        await self._look_at_loader()
        self._warnings += await self._wire.settle_in()
        self.hooks.resumed()
        self._announcing = asyncio.create_task(self._announce_again())
        self._cleaning = asyncio.create_task(self._clean_up_or_tell())
        return tuple(self._warnings)

    @classmethod
    def recovered(cls, reservation: Reservation, host: Host, journal: Journal, images: Path) -> Arrival:
        """Make again what an agent before this one had: no copy is held, all that can be undone is queued."""
        arrival = cls(reservation, host, journal)
        arrival.images = images
        held = last_of(journal.records, Mark.HELD)
        told = held.data.get(UNACCEPTED, ()) if held else ()
        arrival._wire.unaccepted = tuple(ConnectionFacts(**each) for each in told)
        arrival.resumed = last_of(journal.records, Mark.RUNNING) is not None
        arrival._undo.add("images on the destination", lambda: host.rooms.release(reservation.migration_id))
        arrival._wire.queue_undo(arrival._undo)
        return arrival

    async def confirm(self) -> None:
        """The copy was found running after a restart of the agent: see the rest of RESUME through."""
        self.resumed = True
        self._undo.forget()
        await self._wire.let_in()
        await self._wire.settle_in()
        self.hooks.resumed()
        await self._clean_up()

    async def abort(self, reason: str = "") -> Aborted:
        """Undo everything, then run the hooks of rollback. Raises `DefectError` once the copy was let run."""
        if self.resumed:
            raise DefectError("the source asked to abort a migration whose workload already runs here")
        self.aborted = True
        await self._journal.write(Mark.ABORTING)
        leftovers = await self._undo.unwind()
        ran = await self.hooks.run_once(Stage.ROLLBACK, reason=reason)
        if not leftovers:
            await self._journal.write(Mark.ENDED, {"outcome": str(Outcome.ROLLED_BACK)})
        return Aborted(leftovers, ran)

    async def settled(self) -> None:
        """Wait for the cleaning up that `resume` left to do, and leave off telling the neighbours again.

        Pages that are still being loaded are not waited for: an agent that starts later finds the loader and sees to
        the rest.
        """
        if self._announcing is not None:
            self._announcing.cancel()
        if self._cleaning is not None:
            if self.loading is not None:
                self._cleaning.cancel()
            await asyncio.wait([self._cleaning])

    async def let_go(self) -> None:
        """The agent ends: CRIU is let go of, which kills a copy that is still held. Images and journal stay."""
        if self._gate is not None and not self.resumed:
            await self._gate.__aexit__(None, None, None)

    async def _prepare_helpers(self) -> None:
        """Start the guard, and the loader where a lazy restore helps, ahead of time; both can be done without."""
        with contextlib.suppress(PhaulError):
            self._guard = await self._host.engine.guard()
            self._undo.add("the guard", self._guard.close)
        features = (await self._host.engine.describe()).features
        if lazy.helps(self.reservation.memory_bytes, features):
            with contextlib.suppress(PhaulError):
                self._loader = await self._host.engine.loader(self._id, self.images)
                self._undo.add("the loader", self._loader.close)

    async def _hold_lazily(self) -> HeldRestore | None:
        """Restore a copy whose pages are loaded while it runs. None where that is not possible: then eagerly."""
        if self._loader is None:
            return None
        try:
            await self._loader.ready()
            return await self._hold(is_lazy=True)
        except RestoreError:
            loader, self._loader = self._loader, None
            await loader.close()
            return None

    async def _hold(self, *, is_lazy: bool = False) -> HeldRestore:
        self.hooks.restore_begins()
        await self._wire.cut()  # a restore that failed before may have left links
        gate = self._host.engine.restore(
            RestoreRequest(
                migration_id=self._id,
                images=self.images,
                root_pid=self.reservation.root_pid,
                keep_connections=self.reservation.keep_connections,
                shell_job=self.reservation.shell_job,
                close_connections=self.reservation.close_connections,
                lazy=is_lazy,
                external=self._wire.external,
                setting_up=self._set_up,
                guard=self._guard,
                empty_network=self._wire.empty_network,
            )
        )
        self._held = await gate.__aenter__()
        self._gate = gate
        return self._held

    async def _set_up(self, root_pid: int) -> None:
        await self._wire.set_up(root_pid, self.images)
        await self.hooks.set_up()

    async def _kill_copy(self) -> None:
        """See that nothing is left of the copy that was held last, whatever became of its CRIU."""
        held = last_of(self._journal.records, Mark.HELD)
        if held is None:
            return
        identity = TreeIdentity.from_data(held.data)
        await self._host.workload.finish_kill(identity)
        pids = tuple(pid for pid, _ in identity.tasks)
        for _ in range(REAPED_LOOKS):
            taken, *_ = await self._host.workload.observe(pids, ())
            if not taken:
                return
            await self._kill_unfinished(pids[0])
            await self._host.clock.sleep(REAPED_LOOK_SECONDS)
        raise RestoreError("tasks of the copy that was held before keep its PIDs taken")

    async def _kill_unfinished(self, root_pid: int) -> None:
        """Kill a later copy that no record names: agent and CRIU were killed before it could be written."""
        workload = self._host.workload
        try:
            identity = await workload.identify(root_pid)
        except PhaulError:
            return  # it ends at this moment
        state, _ = await workload.look(identity)
        if state is Tree.UNFINISHED:
            await workload.finish_kill(identity)

    async def _hold_again(self) -> HeldRestore:
        """Restore once more, behind the fence: without the connections the kernel would reset them."""
        await self._wire.fence()
        if self._gate is not None:
            gate, self._gate = self._gate, None
            await gate.__aexit__(None, None, None)
        await self._kill_copy()  # a CRIU that was killed leaves its tasks behind
        guard, self._guard = self._guard, None  # it guards one copy, and the next comes to run within milliseconds
        if guard is not None:
            await guard.close()
        held = await self._hold()
        await self._record_held(held)  # another copy than the one before: it must be known which one runs
        return held

    async def _record_held(self, held: HeldRestore, *, is_lazy: bool = False) -> None:
        identity = await self._host.workload.identify(held.tree.root_pid)
        unaccepted = [dataclasses.asdict(each) for each in self._wire.unaccepted]
        await self._journal.write(Mark.HELD, {**identity.as_data(), LAZY: is_lazy, UNACCEPTED: unaccepted})

    async def _run_copy(self) -> None:
        try:
            if self._held is None:
                raise RestoreError("the agent was restarted since the copy was restored")
            await self._pass_gate(self._held)
        except PhaulError as first:
            if await self._runs_all_the_same():
                await self._let_in()
                return
            try:
                await self._pass_gate(await self._hold_again())
            except PhaulError as second:
                second.add_note(f"before that: {first.message}")
                self.resumed = False  # the source, or a person, may ask for it again
                raise LostError(
                    f"the workload runs on neither host: {second.message}",
                    hint=f"Its images are kept in {self.images} on the destination; restore them with `criu restore`.",
                    detail=second.detail,
                ) from second

    async def _runs_all_the_same(self) -> bool:
        """Whether the copy runs although nobody said so: its CRIU, unguarded, was killed after it had let it go.

        Such a copy must not be killed: what it has done since is in no image.
        """
        for _ in range(RUNS_LOOKS):  # between two stages of its restorer a copy looks like one that runs
            if not await self._is_here():
                return False
            await self._host.clock.sleep(REAPED_LOOK_SECONDS)
        return True

    async def _is_here(self) -> bool:
        if (held := last_of(self._journal.records, Mark.HELD)) is None:
            return False
        state, _others = await self._host.workload.look(TreeIdentity.from_data(held.data))
        return state is Tree.ALIVE

    async def _pass_gate(self, held: HeldRestore) -> None:
        # Not before: what the kernel acknowledges for a copy that then does not run is lost to the next one.
        await held.run(self._let_in)
        self.running_since_us = self._host.clock.monotonic_us()

    async def _let_in(self) -> None:
        if warning := await self._wire.let_in():
            self._warnings.append(warning)

    async def _discard(self) -> None:
        await self._wire.cut()
        if self._held is not None:
            await self._held.discard()
        if self._gate is not None:
            await self._gate.__aexit__(None, None, None)
        await self._kill_copy()

    async def _announce_again(self) -> None:
        for delay_seconds in announce_again_seconds():
            await self._host.clock.sleep(delay_seconds)
            if not await self._is_here():
                return  # it has moved on, or ended: whoever has its addresses now is not to be spoken over
            with contextlib.suppress(PhaulError):
                await self._wire.announce()

    async def _clean_up_or_tell(self) -> None:
        try:
            await self._clean_up()
        except LostError as error:
            self.loading = None
            await self._journal.write(Mark.ENDED, {"outcome": str(Outcome.LOST)})
            self.lost(error)

    async def _clean_up(self) -> None:
        if self._gate is not None:
            await self._gate.__aexit__(None, None, None)
        if self._guard is not None:
            await self._guard.close()
        await self._see_loaded()
        if self._loader is not None:
            await self._loader.close()
        await self._host.rooms.release(self._id)
        await self.hooks.settled()
        await self._journal.write(Mark.ENDED, {"outcome": str(Outcome.COMPLETED)})

    async def _see_loaded(self) -> None:
        """Wait until every page of a copy that runs is in place: until then they are only in the images.

        Raises `LostError` when they never will be: the copy is ended, as it would go on with zeros for its memory.
        """
        while (loading := await self._look_at_loader()) is not None:
            if loading.state is LoadingState.LOST:
                await self._kill_copy()
                raise LostError(
                    "the process that loaded the workload's pages was killed, its twin as well, before all were in "
                    f"place; the workload was ended, as {loading.left_bytes} bytes of its memory were missing",
                    hint=f"Its images, as of the moment of the migration, are kept in {self.images} on the "
                    "destination; restore them with `criu restore`. The kernel's log may say who killed it.",
                )
            await self._host.clock.sleep(LOADED_LOOK_SECONDS)

    async def _look_at_loader(self) -> Loading | None:
        """How far the loading of the copy that runs is; None where there is nothing left to load."""
        held = last_of(self._journal.records, Mark.HELD)
        loading = await self._host.engine.loading(self._id) if held and held.data.get(LAZY) else None
        self.loading = loading if loading is not None and loading.state is not LoadingState.DONE else None
        return self.loading
