"""All migrations that come in to a host: each step done once, however often it is asked for, until either side decides.

`agent.peer_service` translates gRPC to these calls, the crash model calls them directly. A step that is repeated while
it is under way or done gives the same answer: the source may ask again after a lost reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from phaul.errors import NoSuchMigrationError, PhaulError, PreflightError
from phaul.migration.destination import Arrival
from phaul.migration.events import Outcome, Role
from phaul.migration.facts import ConnectionFacts, HookRun
from phaul.migration.hooks import HookScene, HostHooks, Stage
from phaul.migration.host import Host
from phaul.migration.interfaces import TreeIdentity
from phaul.migration.journal import Journal, Mark, ended, last_of
from phaul.migration.lazy import Loading
from phaul.migration.page_images import HashedImage, PageImage, Runs
from phaul.migration.peer import Aborted, PeerAgent, Reservation, RestoredCopy, Resumed
from phaul.migration.reception import ArrivalObserver, Journals, PageReader, Reception
from phaul.migration.recovery import Word, destination_word
from phaul.migration.reserving import reservation_of, room_bytes
from phaul.units import format_bytes

R = TypeVar("R")

REMEMBERED = 32  # migrations that have ended, so that a repeated Resume gets its answer again
LEASE_SECONDS = 60.0  # without a word from the source; then it is asked
ASK_AGAIN_SECONDS = 5.0
HOOKS = "hooks of "  # and the stage: a step


@dataclass(slots=True, eq=False)
class _Incoming:
    """One migration and the answers it has given. A step under way or done stands in `answers`."""

    arrival: Arrival
    pages: Reception
    lease: asyncio.Task[None] | None = None
    heard_us: int = 0  # when the source last called
    answers: dict[str, asyncio.Future[Any]] = field(default_factory=dict)


class Arrivals:
    """The migrations coming in. Owns them until they have ended."""

    def __init__(
        self,
        host: Host,
        journals: Journals,
        observer: ArrivalObserver,
        receive: Callable[[Path, int, int], Reception],
        connect: Callable[[str], PeerAgent],
        pages: PageReader,
        admit: Callable[[Reservation, int], Awaitable[None]],
    ) -> None:
        self._pages = pages
        self._admitted = admit
        self._host = host
        self._journals = journals
        self._observer = observer
        self._receive = receive
        self._connect = connect
        self._incoming: dict[str, _Incoming] = {}
        self._preparing = asyncio.Lock()

    async def prepare(self, reservation: Reservation) -> bytes:
        """PREPARE; give the token of the page channel."""
        # In a task of its own: a caller that leaves in the middle must not leave half a reservation behind.
        incoming = await asyncio.shield(asyncio.ensure_future(self._prepare(reservation)))
        return incoming.pages.token

    async def prepare_for(self, reservation: Reservation, pages: Reception) -> Path:
        """The same for images that come in another way; give the directory where they shall go."""
        incoming = await asyncio.shield(asyncio.ensure_future(self._prepare(reservation, pages)))
        return incoming.arrival.images

    async def _prepare(self, reservation: Reservation, pages: Reception | None = None) -> _Incoming:
        async with self._preparing:
            return self._incoming.get(reservation.migration_id) or await self._admit(reservation, pages)

    async def reopen(self, migration_id: str) -> bytes:
        """PRECOPY: wait for another page channel in place of one that broke; give its token."""
        incoming = self._find(migration_id)
        incoming.heard_us = self._host.clock.monotonic_us()
        await incoming.pages.stopped()
        memory_bytes = incoming.arrival.reservation.memory_bytes
        incoming.pages = self._receive(incoming.arrival.images, room_bytes(memory_bytes), memory_bytes)
        return incoming.pages.token

    def images(self, migration_id: str) -> Path:
        """Where the images of a migration go."""
        return self._find(migration_id).arrival.images

    async def restore(self, migration_id: str, unaccepted: Sequence[ConnectionFacts] = ()) -> RestoredCopy:
        """RESTORE."""
        incoming = self._find(migration_id)

        async def act() -> RestoredCopy:
            page_bytes = (await asyncio.shield(incoming.pages.received)).page_bytes
            return await incoming.arrival.restore(page_bytes, unaccepted)

        return await self._once(incoming, "restore", act)

    async def hashed_pages(self, migration_id: str, pending: Sequence[PageImage]) -> tuple[HashedImage, ...]:
        """What came in the newest dump, once all of it has, and what else of `pending` is there."""
        incoming = self._find(migration_id)
        incoming.heard_us = self._host.clock.monotonic_us()
        return await self._pages.hashed(await asyncio.shield(incoming.pages.received), pending)

    async def received_content(self, migration_id: str, name: str, runs: Runs) -> bytes:
        """A block of an image as it arrived."""
        received = await asyncio.shield(self._find(migration_id).pages.received)
        return await self._pages.content(received, name, runs)

    async def resume(self, migration_id: str) -> Resumed:
        """RESUME. Also right for a migration that an agent before this one has let run."""
        journal = self._journals.find(migration_id)
        if migration_id not in self._incoming and journal and destination_word(journal.records) is Word.RUNNING:
            return Resumed()
        incoming = self._find(migration_id)
        try:
            warnings = await self._once(incoming, "resume", incoming.arrival.resume)
        except PhaulError as error:
            incoming.answers.pop("resume", None)  # it may be asked for again
            self._observer.settled(migration_id, Outcome.LOST, error)
            raise
        self._end_lease(incoming)
        self._observer.settled(migration_id, Outcome.COMPLETED, None)
        since_us = incoming.arrival.running_since_us
        return Resumed(warnings, self._host.clock.monotonic_us() - since_us if since_us else 0)

    async def run_hooks(self, stage: str, scene: HookScene) -> tuple[HookRun, ...]:
        """Run the hooks of a stage, once; those of post-resume run by themselves and are waited for."""
        if stage == Stage.PREFLIGHT:  # nothing is known of the migration yet
            return await HostHooks(self._host.hooks, Role.DESTINATION, scene).run(stage)
        incoming = self._find(scene.migration_id)
        if stage == Stage.POST_RESUME:
            return await incoming.arrival.hooks.settled()
        return await self._once(incoming, f"{HOOKS}{stage}", lambda: incoming.arrival.hooks.run(stage))

    async def abort(self, migration_id: str, reason: str = "") -> Aborted:
        """Undo everything. A migration that is not known here has nothing to undo."""
        async with self._preparing:
            incoming = self._incoming.get(migration_id)
        if incoming is None:
            return Aborted()
        aborted = await self._once(incoming, "abort", lambda: self._abort(incoming, reason))
        self._end_lease(incoming)
        self._observer.settled(migration_id, Outcome.ROLLED_BACK, None)
        if self._incoming.pop(migration_id, None) is not None:
            self._journals.forget(migration_id)
        return aborted

    async def give_up(self, migration_id: str, reason: str) -> Aborted:
        """Undo everything of a migration that is lost here, as there is another copy of its images."""
        await self._find(migration_id).arrival.let_go()
        journal = self._journals.of(migration_id)
        arrival = await self.recover(migration_id, journal)
        if (held := last_of(journal.records, Mark.HELD)) is not None:
            await self._host.workload.finish_kill(TreeIdentity.from_data(held.data))
        aborted = await arrival.abort(reason)
        self._observer.settled(migration_id, Outcome.ROLLED_BACK, None)
        self._incoming.pop(migration_id, None)
        self._journals.forget(migration_id)
        return aborted

    @property
    def under_way(self) -> int:
        """How many have not ended."""
        return sum(not each.arrival.ended for each in self._incoming.values())

    def source_name(self, migration_id: str) -> str | None:
        """What the source of a migration is called; None of one that is not known."""
        incoming = self._incoming.get(migration_id)
        return incoming.arrival.reservation.source_name if incoming else None

    def knows(self, migration_id: str) -> bool:
        """Whether a step of this migration can be asked for."""
        return migration_id in self._incoming

    def at_work(self, migration_id: str) -> bool:
        """Whether a migration is on its way here, or its copy still needs something of it."""
        journal = self._journals.find(migration_id) if migration_id in self._incoming else None
        return journal is not None and not ended(journal.records)

    @property
    def busy(self) -> bool:
        """Whether anything here waits for a decision, or for pages that are not in place yet."""
        return self._preparing.locked() or any(
            not each.arrival.ended or each.arrival.loading is not None for each in self._incoming.values()
        )

    def loading(self, migration_id: str) -> Loading | None:
        """How far the pages of a copy that runs are, until they are all in place."""
        incoming = self._incoming.get(migration_id)
        return incoming.arrival.loading if incoming is not None else None

    def holds(self, migration_id: str) -> bool:
        """Whether a restored copy is held at its gate by this agent."""
        incoming = self._incoming.get(migration_id)
        restored = incoming.answers.get("restore") if incoming is not None else None
        if incoming is None or restored is None or incoming.arrival.ended:
            return False
        return restored.done() and not restored.cancelled() and restored.exception() is None

    async def recover(self, migration_id: str, journal: Journal) -> Arrival:
        """Take up again a migration that came in before this agent's life, so that the source can go on with it."""
        reserved = last_of(journal.records, Mark.RESERVED)
        assert reserved is not None
        images = await self._host.rooms.existing(migration_id) or Path()
        arrival = Arrival.recovered(reservation_of(reserved.data), self._host, journal, images)
        arrival.lost = partial(self._observer.settled, migration_id, Outcome.LOST)
        pages = self._receive(images, 0, 0)
        pages.cancel()
        self._incoming[migration_id] = _Incoming(arrival, pages)
        return arrival

    async def close(self) -> None:
        """The agent ends, and CRIU with it. What the source may have committed to stays for the agent after it."""
        for incoming in list(self._incoming.values()):
            if incoming.lease is not None:
                incoming.lease.cancel()
            if not incoming.arrival.ended and not incoming.arrival.may_be_the_last_copy:
                await self._abort(incoming)
            await incoming.arrival.settled()
            await incoming.arrival.let_go()

    async def _admit(self, reservation: Reservation, pages: Reception | None) -> _Incoming:
        migration_id = reservation.migration_id
        journal = self._journals.of(migration_id)
        if journal.records:
            raise PreflightError(f"migration {migration_id} was here before, and has ended")
        for other in self._incoming.values():
            if other.arrival.reservation.root_pid == reservation.root_pid and not other.arrival.ended:
                raise PreflightError(
                    f"PID {reservation.root_pid} is expected here already, by migration "
                    f"{other.arrival.reservation.migration_id}",
                    hint="Wait until that one has ended, or cancel it.",
                )
        await self._require_memory(reservation)
        await self._admitted(reservation, self.under_way)
        arrival = Arrival(reservation, self._host, journal)
        arrival.lost = partial(self._observer.settled, migration_id, Outcome.LOST)
        self._observer.arrived(reservation)
        try:
            directory = await arrival.prepare()
        except BaseException as error:
            await arrival.abort()
            known = error if isinstance(error, PhaulError) else PhaulError(str(error) or type(error).__name__)
            self._observer.settled(migration_id, Outcome.REFUSED, known)
            self._journals.forget(migration_id)
            raise
        memory_bytes = reservation.memory_bytes
        incoming = _Incoming(arrival, pages or self._receive(directory, room_bytes(memory_bytes), memory_bytes))
        incoming.heard_us = self._host.clock.monotonic_us()
        incoming.lease = asyncio.create_task(self._watch_lease(migration_id, incoming))
        self._incoming[migration_id] = incoming
        self._forget_oldest()
        return incoming

    async def _require_memory(self, reservation: Reservation) -> None:
        """Refuse what does not fit beside what others were promised: images and copy stand side by side at the end."""
        others = [each.arrival for each in self._incoming.values() if not each.arrival.ended]
        promised = sum(2 * room_bytes(each.reservation.memory_bytes) for each in others)
        needed = 2 * room_bytes(reservation.memory_bytes)
        available = (await self._host.describe()).memory_available_bytes
        if available < promised + needed:
            raise PreflightError(
                f"there is not enough memory for it beside {len(others)} other migrations on their way there: "
                f"{format_bytes(needed)} are needed, {format_bytes(max(available - promised, 0))} are free",
                hint="Wait until those have ended, or free memory there.",
            )

    async def _watch_lease(self, migration_id: str, incoming: _Incoming) -> None:
        """Ask the source what became of it when it has been silent for long: it may have died, or forgotten us.

        Before the copy is held, nothing here can be the last copy, and a source that does not answer loses its lease.
        From then on silence decides nothing.
        """
        clock = self._host.clock
        delay_seconds = LEASE_SECONDS
        while not incoming.arrival.ended:
            await clock.sleep(delay_seconds)
            silent_seconds = (clock.monotonic_us() - incoming.heard_us) / 1e6
            restoring = incoming.answers.get("restore")
            delay_seconds = max(ASK_AGAIN_SECONDS, LEASE_SECONDS - silent_seconds)
            if silent_seconds < LEASE_SECONDS or (restoring and not restoring.done()):
                continue
            word = await self._ask(incoming)
            held = incoming.arrival.may_be_the_last_copy
            if word is Word.COMMITTED and held:
                await self.resume(migration_id)
            elif word is Word.ABORTED or (word in (Word.NO_ANSWER, Word.UNKNOWN) and not held):
                await self.abort(migration_id)
            elif word is Word.NO_ANSWER:
                self._observer.settled(migration_id, Outcome.IN_DOUBT, None)

    def _end_lease(self, incoming: _Incoming) -> None:
        """The source has decided: nobody asks any more, and what came over the page channel need not be remembered."""
        incoming.pages.forget()
        lease, incoming.lease = incoming.lease, None
        if lease is not None and lease is not asyncio.current_task():
            lease.cancel()

    async def _ask(self, incoming: _Incoming) -> Word:
        peer = self._connect(incoming.arrival.reservation.source_peer)
        try:
            return await peer.word(incoming.arrival.reservation.migration_id)
        finally:
            await peer.close()

    async def _abort(self, incoming: _Incoming, reason: str = "") -> Aborted:
        incoming.pages.cancel()
        acting = [each for step, each in incoming.answers.items() if step == "restore" or step.startswith(HOOKS)]
        acting = [each for each in acting if not each.done()]
        for each in acting:
            each.cancel()
        if acting:
            await asyncio.wait(acting)
        return await incoming.arrival.abort(reason)

    async def _once(self, incoming: _Incoming, step: str, act: Callable[[], Awaitable[R]]) -> R:
        """Do a step that was not begun yet; give the answer of one that was. A caller that leaves does not end it."""
        incoming.heard_us = self._host.clock.monotonic_us()
        if step not in incoming.answers:
            incoming.answers[step] = asyncio.ensure_future(act())
        return cast("R", await asyncio.shield(incoming.answers[step]))

    def _forget_oldest(self) -> None:
        over = [key for key, incoming in self._incoming.items() if incoming.arrival.ended]
        for migration_id in over[:-REMEMBERED]:
            del self._incoming[migration_id]
            self._journals.forget(migration_id)

    def _find(self, migration_id: str) -> _Incoming:
        try:
            return self._incoming[migration_id]
        except KeyError:
            raise NoSuchMigrationError(
                f"migration {migration_id} is not known on this host",
                hint="Its agent was restarted, or it was aborted.",
            ) from None
