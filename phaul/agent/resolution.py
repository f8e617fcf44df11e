"""What a person is told of a migration in doubt, and what is done when they decide. Made by `agent.server`.

Which choice is safe is decided in `migration.resolution`; here the journal, the kernel and the other host are asked,
the decision is journaled, and it is done by whoever is at work on the migration: its coordinator, the arrivals, or the
settling task.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from phaul.agent.history import History
from phaul.agent.journals import Journals, MigrationJournal
from phaul.agent.outgoing import Outgoing, OutgoingMigrations
from phaul.agent.settlers import Settlers
from phaul.agent.stores import Connect
from phaul.errors import InDoubtError, UsageError
from phaul.migration import resolution
from phaul.migration.arrivals import Arrivals
from phaul.migration.events import Outcome, Role
from phaul.migration.host import Host
from phaul.migration.interfaces import TreeIdentity
from phaul.migration.journal import Mark, ended, last_of
from phaul.migration.recovery import Choice, Tree, Word
from phaul.migration.reserving import reservation_of
from phaul.migration.resolution import DoubtReport, Safety, Situation
from phaul.rpc.v1 import agent_pb2

log = structlog.get_logger(__name__)

WORD_SECONDS = 8.0  # for an answer of the other host; a person waits for it
DONE_SECONDS = 30.0  # for a settling task to do what was decided, then it goes on alone


@dataclass(frozen=True, slots=True)
class Resolved:
    """How the migration stands now. IN_DOUBT: decided, but not done yet."""

    outcome: Outcome
    warnings: tuple[str, ...] = ()


class Resolver:
    """Answers for every migration that this host's journals know. Holds nothing but what it was given."""

    def __init__(
        self,
        host: Host,
        history: History,
        journals: Journals,
        migrations: OutgoingMigrations,
        arrivals: Arrivals,
        settlers: Settlers,
        connect: Connect,
    ) -> None:
        self._host = host
        self._history = history
        self._journals = journals
        self._migrations = migrations
        self._arrivals = arrivals
        self._settlers = settlers
        self._connect = connect
        self._one_at_a_time = asyncio.Lock()

    async def describe(self, typed: str) -> DoubtReport:
        """Look at one migration from all sides; nothing is changed."""
        record = self._history.get(typed)
        situation, peer = await self._look(record)
        return DoubtReport(
            migration_id=record.migration_id,
            role=situation.role,
            peer=peer,
            root_pid=record.root_pid,
            command=record.command,
            settled=ended(situation.records) or record.outcome not in _UNSETTLED,
            stands=resolution.stands(situation),
            marks=tuple(map(resolution.describe_record, situation.records)),
            tree=situation.tree,
            images_complete=situation.images_complete,
            other=situation.other,
            options=resolution.options(situation),
        )

    async def resolve(self, typed: str, choice: Choice, *, force: bool) -> Resolved:
        """Do what was decided. Raises `InDoubtError`, with nothing done, where it is not allowed."""
        async with self._one_at_a_time:
            record = self._history.get(typed)
            migration_id = record.migration_id
            situation, _ = await self._look(record)
            option = next(each for each in resolution.options(situation) if each.choice is choice)
            if ended(situation.records):
                raise UsageError(f"migration {migration_id} has ended: there is nothing to resolve")
            if option.safety is Safety.IMPOSSIBLE:
                raise InDoubtError(f"this cannot be done: {option.reason}")
            if option.safety is Safety.UNSAFE and not force:
                raise InDoubtError(
                    f"this is not safe: {option.reason}. {option.danger}",
                    hint="If you are certain: the same with --yes.",
                )
            log.warning(
                "migration.resolved_by_person",
                migration_id=migration_id,
                choice=str(choice),
                safety=str(option.safety),
                other=str(situation.other),
            )
            if situation.role is Role.DESTINATION:
                return await self._at_destination(migration_id, choice, situation.other)
            return await self._at_source(migration_id, choice, situation)

    async def _look(self, record: agent_pb2.MigrationSummary) -> tuple[Situation, str]:
        """The other host first: what this host knows must not be older than its answer."""
        migration_id = record.migration_id
        role = Role.SOURCE if record.role == agent_pb2.ROLE_SOURCE else Role.DESTINATION
        journal = self._journals.find(migration_id)
        peer, identity = record.peer, None
        if journal is not None:
            plan, reserved = last_of(journal.records, Mark.PLANNED), last_of(journal.records, Mark.RESERVED)
            if plan is not None:
                peer = str(plan.data["destination"])
            elif reserved is not None:
                peer = reservation_of(reserved.data).source_peer
        other = await self._ask(migration_id, peer)
        if journal is not None:
            identity = _identity(journal)
        tree = (await self._host.workload.look(identity))[0] if identity else None
        room = await self._host.rooms.existing(migration_id)
        records = tuple(journal.records) if journal is not None else ()
        held = last_of(records, Mark.HELD) is not None
        if role is Role.SOURCE:
            at_work = self._migrations.under_way(migration_id) is not None
        else:
            at_work = self._arrivals.holds(migration_id)
            tree = Tree.HELD if at_work else tree  # a copy at its gate waits in CRIU's restorer and is not traced
        return Situation(role, records, tree, at_work, held and room is not None, other), peer

    async def _ask(self, migration_id: str, name: str) -> Word:
        peer = self._connect(name)
        try:
            return await asyncio.wait_for(peer.word(migration_id), WORD_SECONDS)
        except TimeoutError:
            return Word.NO_ANSWER
        finally:
            await peer.close()

    async def _at_destination(self, migration_id: str, choice: Choice, word: Word) -> Resolved:
        journal = self._journals.of(migration_id)
        await journal.write(Mark.RESOLVED, {"choice": choice, "word": word})
        if not self._arrivals.knows(migration_id):
            await self._arrivals.recover(migration_id, journal)
        if choice is Choice.RESUME_HERE:
            warnings, outcome = (await self._arrivals.resume(migration_id)).warnings, Outcome.COMPLETED
        else:
            aborted = await self._arrivals.abort(migration_id, "a person decided so")
            warnings, outcome = aborted.leftovers, Outcome.ROLLED_BACK
        await self._settlers.stop(migration_id)  # it may have noted a doubt meanwhile
        self._history.end(migration_id, outcome)
        return Resolved(outcome, warnings)

    async def _at_source(self, migration_id: str, choice: Choice, situation: Situation) -> Resolved:
        outgoing, word = self._migrations.under_way(migration_id), situation.other
        if outgoing is not None and last_of(situation.records, Mark.COMMIT) is None:
            accepted, reason = self._migrations.cancel(migration_id)
            if not accepted:  # it was killed a moment ago: what was safe to decide is not any more
                raise InDoubtError(f"this cannot be done: {reason}")
            await self._wait_coordinator(outgoing)
            return self._now(migration_id)
        if outgoing is not None:
            await self._journals.of(migration_id).write(Mark.RESOLVED, {"choice": choice, "word": word})
            await self._give_up(migration_id, outgoing)
            return self._now(migration_id)
        await self._settlers.stop(migration_id)
        journal = self._journals.of(migration_id)
        if not ended(journal.records):
            await journal.write(Mark.RESOLVED, {"choice": choice, "word": word})
            self._settlers.begin(migration_id, journal)
            await self._settlers.wait(migration_id, DONE_SECONDS)
        return self._now(migration_id)

    async def _give_up(self, migration_id: str, outgoing: Outgoing) -> None:
        """End a coordinator that asks RESUME; it may hear the answer at this very moment, and then it has completed."""
        assert outgoing.peer is not None
        outgoing.peer.give_up()
        await self._wait_coordinator(outgoing)
        journal = self._journals.of(migration_id)
        if not ended(journal.records):
            await journal.write(Mark.ENDED, {"outcome": str(Outcome.LOST)})

    async def _wait_coordinator(self, outgoing: Outgoing) -> None:
        if outgoing.task is not None:
            await asyncio.wait([outgoing.task])

    def _now(self, migration_id: str) -> Resolved:
        number = self._history.get(migration_id).outcome
        return Resolved(Outcome[agent_pb2.Outcome.Name(number).removeprefix("OUTCOME_")])


_UNSETTLED = (agent_pb2.OUTCOME_RUNNING, agent_pb2.OUTCOME_IN_DOUBT, agent_pb2.OUTCOME_LOST)


def _identity(journal: MigrationJournal) -> TreeIdentity | None:
    """The processes that matter on this host: the tree that leaves, or the copy that came."""
    named = last_of(journal.records, Mark.HELD) or last_of(journal.records, Mark.COMMIT)
    if named is not None:
        return TreeIdentity.from_data(named.data)
    plan = last_of(journal.records, Mark.PLANNED)
    return TreeIdentity.from_data(plan.data["tree"]) if plan is not None else None


def choice_of(number: agent_pb2.Choice.ValueType) -> Choice:
    """Read a choice off the wire."""
    match number:
        case agent_pb2.CHOICE_RESUME_HERE:
            return Choice.RESUME_HERE
        case agent_pb2.CHOICE_ABORT_HERE:
            return Choice.ABORT_HERE
        case _:
            raise UsageError("a choice was not named: RESUME_HERE or ABORT_HERE")
