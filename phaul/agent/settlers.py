"""What an agent does at its start about the migrations that the one before it left in the middle: one task for each.

Owned by `agent.server`. Which act is right is decided in `migration.recovery`; here the journals are found, the other
host is reached, and `phaul status` is told how it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from phaul.agent.history import History
from phaul.agent.journals import Journals, MigrationJournal
from phaul.agent.stores import Connect
from phaul.errors import DefectError, InDoubtError, LostError, PhaulError, RolledBackError
from phaul.migration.arrivals import Arrivals
from phaul.migration.events import Outcome, Role
from phaul.migration.host import Host
from phaul.migration.journal import Mark, last_of
from phaul.migration.resolution import in_doubt
from phaul.migration.settlement import settle_destination, settle_source

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 5.0  # after something that should not have failed has failed


class Settlers:
    """The tasks that settle. Owns them until `close`, which leaves what is unsettled to the next agent."""

    def __init__(
        self,
        host: Host,
        journals: Journals,
        history: History,
        arrivals: Arrivals,
        connect: Connect,
    ) -> None:
        self._host = host
        self._journals = journals
        self._history = history
        self._arrivals = arrivals
        self._connect = connect
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin to settle everything that is unfinished."""
        for migration_id, journal in self._journals.unfinished():
            log.warning("migration.unfinished", migration_id=migration_id, last=str(journal.records[-1].mark))
            self.begin(migration_id, journal)
        self._history.end_unplanned(set(self._tasks))

    def begin(self, migration_id: str, journal: MigrationJournal) -> None:
        """Settle one migration, from what its journal says now."""
        outgoing = last_of(journal.records, Mark.PLANNED) is not None
        work = self._source if outgoing else self._destination
        self._tasks[migration_id] = asyncio.create_task(self._settle(migration_id, journal, work))

    async def stop(self, migration_id: str) -> None:
        """Leave off settling one: a person has decided. What was begun is as after a crash at this point."""
        task = self._tasks.pop(migration_id, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def wait(self, migration_id: str, timeout_seconds: float) -> None:
        """Wait until one is settled, or the time has run out."""
        task = self._tasks.get(migration_id)
        if task is not None:
            await asyncio.wait([task], timeout=timeout_seconds)

    def under_way(self, migration_id: str) -> bool:
        """Whether this migration is being settled."""
        return migration_id in self._tasks and not self._tasks[migration_id].done()

    @property
    def busy(self) -> bool:
        """Whether any migration is being settled."""
        return any(not task.done() for task in self._tasks.values())

    async def close(self) -> None:
        """Leave off."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _settle(
        self,
        migration_id: str,
        journal: MigrationJournal,
        work: Callable[[str, MigrationJournal], Awaitable[Outcome]],
    ) -> None:
        while True:
            try:
                outcome = await work(migration_id, journal)
            except LostError as error:
                self._history.end(migration_id, Outcome.LOST, error=error)
                await journal.write(Mark.ENDED, {"outcome": str(Outcome.LOST)})
                return
            except Exception as failure:
                known = failure if isinstance(failure, PhaulError) else DefectError(f"{failure!r}")
                log.exception("migration.not_settled", migration_id=migration_id)
                self._history.end(migration_id, Outcome.IN_DOUBT, error=InDoubtError(known.message, hint=known.hint))
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            log.info("migration.settled", migration_id=migration_id, outcome=str(outcome))
            error_of = RolledBackError("the agent was restarted in the middle; the migration was rolled back")
            self._history.end(migration_id, outcome, error=error_of if outcome is Outcome.ROLLED_BACK else None)
            return

    async def _source(self, migration_id: str, journal: MigrationJournal) -> Outcome:
        plan = last_of(journal.records, Mark.PLANNED)
        assert plan is not None
        peer = self._connect(str(plan.data["destination"]))
        try:
            return await settle_source(
                migration_id, journal, self._host, peer, partial(self._doubt, migration_id, Role.SOURCE)
            )
        finally:
            await peer.close()

    async def _destination(self, migration_id: str, journal: MigrationJournal) -> Outcome:
        arrival = await self._arrivals.recover(migration_id, journal)
        peer = self._connect(arrival.reservation.source_peer)
        try:
            return await settle_destination(
                migration_id, journal, arrival, self._host, peer, partial(self._doubt, migration_id, Role.DESTINATION)
            )
        finally:
            await peer.close()

    def _doubt(self, migration_id: str, role: Role, outcome: Outcome, why: str) -> None:
        self._history.end(migration_id, outcome, error=in_doubt(migration_id, role, why))
