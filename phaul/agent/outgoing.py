"""Migrations that leave this host: started, watched, cancelled. Each runs as a task of the agent, whoever looks on.

Owned by `agent.server`, used by `agent.agent_service`. Keeps the events of each migration of this agent's life, so that
a watcher who comes late, or after it has ended, sees all of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator

import structlog

from phaul.agent.destination import avoiding, parse_destination
from phaul.agent.history import History
from phaul.agent.journals import Journals
from phaul.agent.messages import to_message
from phaul.agent.patience import PatientPeer
from phaul.agent.peer_client import GrpcPeer
from phaul.agent.store_peer import StorePeer
from phaul.agent.stores import Connect, HooksOfDump
from phaul.errors import (
    DefectError,
    InDoubtError,
    LostError,
    NotTrustedError,
    PhaulError,
    PolicyError,
    PreflightError,
    UnreachableError,
    UsageError,
)
from phaul.migration.check import Allowed, check, every_workload
from phaul.migration.coordinator import Coordinator
from phaul.migration.events import (
    Event,
    Finished,
    HookRan,
    ModeChosen,
    Outcome,
    PhaseStarted,
    Progress,
    Role,
    RoundFinished,
    Started,
)
from phaul.migration.facts import CheckReport, MigrationRequest, WorkloadFacts
from phaul.migration.host import Host
from phaul.migration.resolution import in_doubt
from phaul.rpc.v1 import agent_pb2

log = structlog.get_logger(__name__)

REMEMBERED = 32  # ended migrations whose events can still be watched; the history keeps all

KINDS = {
    "Started": "started",
    "PhaseStarted": "phase_started",
    "ModeChosen": "mode_chosen",
    "RoundFinished": "round_finished",
    "Progress": "progress",
    "Warning": "warning",
    "HookRan": "hook_ran",
    "Finished": "finished",
}


def outcome_of(error: PhaulError) -> Outcome:
    """How a migration that ended with this error stands."""
    if isinstance(error, PreflightError | UnreachableError | NotTrustedError | PolicyError | UsageError):
        return Outcome.REFUSED
    if isinstance(error, InDoubtError):
        return Outcome.IN_DOUBT
    if isinstance(error, LostError):
        return Outcome.LOST
    return Outcome.ROLLED_BACK


class Outgoing:
    """One migration under way or ended, and what it told so far. An `EventSink`."""

    def __init__(self, migration_id: str, history: History) -> None:
        self.migration_id = migration_id
        self.task: asyncio.Task[None] | None = None
        self.coordinator: Coordinator | None = None  # while it runs
        self._killed = False
        self.peer: PatientPeer | None = None
        self._history = history
        self._events: list[agent_pb2.MigrationEvent] = []
        self._wakers: set[asyncio.Event] = set()
        self.ended = False

    def emit(self, event: Event) -> None:
        """Keep the event and wake who watches."""
        message = agent_pb2.MigrationEvent(
            migration_id=self.migration_id,
            sequence=len(self._events) + 1,
            unix_us=time.time_ns() // 1000,
        )
        field = KINDS[type(event).__name__]
        target = getattr(message, field)
        target.CopyFrom(to_message(event, type(target)))
        self._events.append(message)
        if isinstance(event, PhaseStarted):
            self._history.enter(self.migration_id, event.phase)
        elif isinstance(event, Started):
            self._history.describe(self.migration_id, event.command)
        if not isinstance(event, Progress):
            log.info(f"migration.{field}", migration_id=self.migration_id, **_brief(event))
        for waker in self._wakers:
            waker.set()

    async def watch(self) -> AsyncIterator[agent_pb2.MigrationEvent]:
        """Give every event from the first on, live until the last."""
        waker = asyncio.Event()
        self._wakers.add(waker)
        given = 0
        try:
            while True:
                waker.clear()
                while given < len(self._events):
                    yield self._events[given]
                    given += 1
                if self.ended and given == len(self._events):
                    return
                await waker.wait()
        finally:
            self._wakers.discard(waker)

    @property
    def killed(self) -> bool:
        """Whether the source tree was killed for this migration."""
        return self._killed or (self.coordinator is not None and self.coordinator.killed)

    def release(self) -> None:
        """Keep of the coordinator only what may still be asked for: it holds connections, and the host's drivers."""
        self._killed = self.killed
        self.coordinator = self.task = None

    def finish(self) -> None:
        """No more events come."""
        self.ended = True
        for waker in self._wakers:
            waker.set()


def _brief(event: Event) -> dict[str, object]:
    match event:
        case PhaseStarted(phase):
            return {"phase": str(phase)}
        case Finished(outcome, report, error):
            return {
                "outcome": str(outcome),
                "downtime_us": report.downtime_us if report else None,
                "error": error.message if error else None,
            }
        case Started():
            return {"root_pid": event.root_pid, "destination": event.destination}
        case ModeChosen():
            return {"mode": str(event.mode), "reason": event.reason}
        case RoundFinished() | HookRan():
            return dataclasses.asdict(event)
        case _:
            return {"message": getattr(event, "message", "")}


class OutgoingMigrations:
    """All of them. Refuses a second migration of a workload that is already on its way."""

    def __init__(self, host: Host, history: History, connect: Connect, journals: Journals) -> None:
        self._host = host
        self._journals = journals
        self._history = history
        self._connect = connect
        self._migrations: dict[str, Outgoing] = {}
        self._under_way: dict[int, str] = {}

    async def check(self, request: MigrationRequest, allowed: Allowed = every_workload) -> CheckReport:
        """Preflight alone."""
        peer, host, allowed = self._prepare(request, allowed)
        try:
            return await check(request, host, peer, allowed)
        finally:
            await peer.close()

    def start(
        self, migration_id: str, request: MigrationRequest, asked_by: str = "", allowed: Allowed = every_workload
    ) -> None:
        """Start a migration. Raises `PreflightError` or `UsageError` with nothing begun."""
        other = self._under_way.get(request.root_pid)
        if other is not None:
            raise PreflightError(
                f"PID {request.root_pid} is already being migrated, by migration {other}",
                hint=f"`phaul watch {other}` shows it, `phaul cancel {other}` rolls it back.",
            )
        peer, host, allowed = self._prepare(request, allowed)
        self._history.begin(migration_id, Role.SOURCE, peer.name, request.root_pid, "", asked_by)
        outgoing = Outgoing(migration_id, self._history)
        outgoing.emit(Started(request.root_pid, "", peer.name))
        outgoing.peer = PatientPeer(peer, lambda: self._doubt(migration_id))
        outgoing.coordinator = Coordinator(
            migration_id, request, host, outgoing.peer.as_peer, outgoing, self._journals.of(migration_id), allowed
        )
        self._migrations[migration_id] = outgoing
        self._under_way[request.root_pid] = migration_id
        outgoing.task = asyncio.create_task(self._run(outgoing, outgoing.coordinator, peer, request))

    def _prepare(self, request: MigrationRequest, allowed: Allowed) -> tuple[GrpcPeer | StorePeer, Host, Allowed]:
        """Give who takes the workload in, and the drivers of this host for that; a dump has fewer hooks."""
        peer = self._reach(request)
        if not isinstance(peer, StorePeer):
            return peer, self._host, allowed
        peer.left_running = request.leave_running

        async def allowed_and_told(facts: WorkloadFacts) -> None:
            await allowed(facts)
            peer.look_at(facts)

        return peer, dataclasses.replace(self._host, hooks=HooksOfDump(self._host.hooks)), allowed_and_told

    def _reach(self, request: MigrationRequest) -> GrpcPeer | StorePeer:
        if request.at_rest:
            return self._connect(request.destination)
        moving = [each.address for each in request.addresses]
        return self._connect(str(avoiding(parse_destination(request.destination), moving)))

    def get(self, migration_id: str) -> Outgoing | None:
        """Give a migration of this agent's life; None for one of an earlier life or that came in."""
        return self._migrations.get(self._history.get(migration_id).migration_id)

    @property
    def roots_under_way(self) -> dict[int, str]:
        """The root tasks of what leaves this host now, each with its migration."""
        return dict(self._under_way)

    def killed(self, migration_id: str) -> bool:
        """Whether the tree of this migration was killed in this agent's life."""
        outgoing = self._migrations.get(migration_id)
        return outgoing is not None and outgoing.killed

    def cancel(self, migration_id: str) -> tuple[bool, str]:
        """Ask for a rollback; say whether it was in time, and if not, why."""
        outgoing = self.get(migration_id)
        if outgoing is None or outgoing.task is None or outgoing.ended:
            return False, "it has ended already"
        if outgoing.coordinator is not None and outgoing.coordinator.committed:
            return False, "it is past COMMIT: the workload runs on the destination, or is about to"
        outgoing.task.cancel()
        return True, ""

    def under_way(self, migration_id: str) -> Outgoing | None:
        """Give a migration that a coordinator is at work on."""
        outgoing = self._migrations.get(migration_id)
        return outgoing if outgoing is not None and not outgoing.ended else None

    async def close(self) -> None:
        """Roll back what can be, and see the rest through, as far as this takes under a minute."""
        tasks = []
        for outgoing in self._migrations.values():
            if outgoing.task is not None and not outgoing.task.done():
                if not (outgoing.coordinator and outgoing.coordinator.committed):
                    outgoing.task.cancel()
                tasks.append(outgoing.task)
        if tasks:
            await asyncio.wait(tasks, timeout=60)

    def _doubt(self, migration_id: str) -> None:
        self._history.end(migration_id, Outcome.IN_DOUBT, error=in_doubt(migration_id, Role.SOURCE))

    def _forget_oldest(self) -> None:
        over = [migration_id for migration_id, each in self._migrations.items() if each.ended]
        for migration_id in over[:-REMEMBERED]:
            del self._migrations[migration_id]

    async def _run(
        self, outgoing: Outgoing, coordinator: Coordinator, peer: GrpcPeer | StorePeer, request: MigrationRequest
    ) -> None:
        migration_id = outgoing.migration_id
        try:
            report = await coordinator.run()
        except PhaulError as error:
            forget_frames(error)
            outcome = outcome_of(error)
            self._history.end(migration_id, outcome, error=error)
            outgoing.emit(Finished(outcome, error=error))
        except BaseException as failure:
            log.exception("migration.failed", migration_id=migration_id)
            defect = DefectError(f"phaul failed: {type(failure).__name__}: {failure}")
            outcome = Outcome.IN_DOUBT if coordinator.committed else Outcome.ROLLED_BACK
            self._history.end(migration_id, outcome, error=defect)
            outgoing.emit(Finished(outcome, error=defect))
        else:
            self._history.end(migration_id, Outcome.COMPLETED, report=report)
            outgoing.emit(Finished(Outcome.COMPLETED, report=report))
        finally:
            self._under_way.pop(request.root_pid, None)
            outgoing.release()
            self._journals.forget(migration_id)
            self._forget_oldest()
            outgoing.finish()
            await peer.close()


def forget_frames(error: BaseException) -> None:
    """Let go of where an error and its causes came from.

    Their frames hold the calls that failed, and a gRPC call holds its connection open for as long as it exists.
    """
    seen: list[BaseException | None] = [error]
    for each in seen:
        if each is not None:
            each.__traceback__ = None
            seen += [other for other in (each.__cause__, each.__context__) if other not in seen]
