"""What earlier crashes have left on this host and no agent has seen to: found, told, removed when a person says so.

Made by `agent.server`, used by `agent.agent_service` for `phaul doctor --fix`. What a migration has that is under way,
or in doubt, or lost with its images kept, is never listed. Looks again right before it removes anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import structlog

from phaul.agent.journals import Journals
from phaul.agent.settlers import Settlers
from phaul.errors import PhaulError
from phaul.migration.arrivals import Arrivals
from phaul.migration.events import Outcome
from phaul.migration.facts import ConnectionFacts
from phaul.migration.host import Host
from phaul.migration.journal import Mark, Record, ended, last_of
from phaul.migration.plan import planned_connections

log = structlog.get_logger(__name__)

SETTLE_SECONDS = 20.0  # for undoing again what could not be undone before


class Kind(StrEnum):
    """What is left."""

    MIGRATION = "migration"  # it was not undone to its end: addresses, fence, rules, images, quota
    FENCE = "fence"
    IMAGES = "images"
    ENGINE_LOCK = "engine_lock"  # CRIU's packet filter rules


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that was left. `problem` says why it could not be removed; "" before, and where it was."""

    kind: Kind
    migration_id: str
    what: str
    problem: str = ""


class Leftovers:
    """Finds and removes them.

    Args:
        under_way: says whether a coordinator is at work on a migration of this ID.
    """

    def __init__(
        self, host: Host, journals: Journals, arrivals: Arrivals, settlers: Settlers, under_way: Callable[[str], bool]
    ) -> None:
        self._host = host
        self._journals = journals
        self._arrivals = arrivals
        self._settlers = settlers
        self._under_way = under_way

    async def find(self) -> tuple[Leftover, ...]:
        """Everything that is left. Touches nothing."""
        return tuple([each async for each in self._found()])

    async def remove(self) -> tuple[Leftover, ...]:
        """Remove it; give each with how that went."""
        removed = []
        for each in await self.find():
            try:
                problem = await self._remove(each)
            except PhaulError as error:
                problem = error.message
            log.info("leftover.removed", kind=str(each.kind), migration_id=each.migration_id, problem=problem)
            removed.append(Leftover(each.kind, each.migration_id, each.what, problem))
        return tuple(removed)

    def _free(self, migration_id: str) -> bool:
        """Whether nobody needs, or may still need, what a migration of this ID has here."""
        if self._busy(migration_id):
            return False
        records = self._journals.look(migration_id)
        end = last_of(records, Mark.ENDED)
        return not records or (end is not None and end.data.get("outcome") != str(Outcome.LOST))

    def _busy(self, migration_id: str) -> bool:
        return (
            self._under_way(migration_id)
            or self._settlers.under_way(migration_id)
            or self._arrivals.at_work(migration_id)
        )

    async def _found(self) -> AsyncIterator[Leftover]:
        for migration_id in self._journals.known():
            records = self._journals.look(migration_id)
            if records and not ended(records) and not self._busy(migration_id):
                yield Leftover(Kind.MIGRATION, migration_id, "a migration that was not undone to its end")
        for migration_id in await self._host.network.fences():
            if self._free(migration_id):
                yield Leftover(Kind.FENCE, migration_id, f"the packet filter tables phaul-{migration_id}")
        for migration_id in await self._host.rooms.all():
            if self._free(migration_id):
                path = await self._host.rooms.existing(migration_id)
                yield Leftover(Kind.IMAGES, migration_id, f"images in memory at {path}")
        async for each in self._locks():
            yield each

    async def _locks(self) -> AsyncIterator[Leftover]:
        """CRIU's locks do not say whose they are: ours are those of connections that a migration before has had.

        A migration that is under way may be another attempt with the same connections: nothing is sought then.
        """
        known = self._journals.known()
        if any(map(self._busy, known)):
            return
        named = {each: _planned(self._journals.look(each)) for each in known if self._free(each)}
        every = tuple(dict.fromkeys(each for connections in named.values() for each in connections))
        if not await self._host.network.engine_locks(0, every):
            return
        for migration_id, connections in named.items():
            for lock in await self._host.network.engine_locks(0, connections):
                yield Leftover(Kind.ENGINE_LOCK, migration_id, f"CRIU's lock: {lock}")

    async def _remove(self, leftover: Leftover) -> str:
        migration_id = leftover.migration_id
        match leftover.kind:
            case Kind.MIGRATION:
                journal = self._journals.of(migration_id)
                if not self._busy(migration_id) and not ended(journal.records):
                    self._settlers.begin(migration_id, journal)
                await self._settlers.wait(migration_id, SETTLE_SECONDS)
                if not ended(journal.records):
                    return f"it is still being settled: `phaul status {migration_id}`"
            case Kind.FENCE if self._free(migration_id):
                await self._host.network.unfence(migration_id)
                await self._host.own_networks.unfence(migration_id)
            case Kind.IMAGES if self._free(migration_id):
                await self._host.rooms.release(migration_id)
            case Kind.ENGINE_LOCK if not any(map(self._busy, self._journals.known())):
                await self._host.network.remove_engine_locks(0, _planned(self._journals.look(migration_id)))
        return ""


def _planned(records: Sequence[Record]) -> tuple[ConnectionFacts, ...]:
    """The connections of a migration that left this host; where it listens says nothing of who else does by now."""
    plan = last_of(records, Mark.PLANNED)
    return tuple(each for each in planned_connections(plan.data) if each.state != "listen") if plan else ()
