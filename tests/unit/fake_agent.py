"""A scripted agent for the tests of `phaul.cli`: the `Agent` service on a Unix socket, saying what a test tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from phaul.agent.client import ERROR_METADATA_KEY
from phaul.agent.messages import error_to_message
from phaul.errors import NoSuchMigrationError, PhaulError
from phaul.rpc.v1 import agent_pb2 as pb
from phaul.rpc.v1 import facts_pb2 as facts
from phaul.rpc.v1.agent_pb2_grpc import AgentServicer, add_AgentServicer_to_server

MIGRATION_ID = "m7f3a9c2"
START_UNIX_US = 1_790_000_000_000_000
MIB = 1024 * 1024


@dataclass
class Script:
    """What the fake agent does. `hold_after` stops the event stream after so many events until `released` is set."""

    events: Sequence[pb.MigrationEvent] = ()
    pause_seconds: float = 0.0
    hold_after: int | None = None
    drop_after: int | None = None  # breaks the first stream off there, as an agent that is restarted does
    fail: PhaulError | None = None
    check: facts.CheckReport = field(default_factory=facts.CheckReport)
    host: facts.HostFacts = field(default_factory=facts.HostFacts)
    migrations: Sequence[pb.MigrationSummary] = ()
    cancel: pb.CancelMigrationReply = field(default_factory=lambda: pb.CancelMigrationReply(accepted=True))
    cancel_events: Sequence[pb.MigrationEvent] = ()
    doubt: pb.DoubtReport = field(default_factory=pb.DoubtReport)
    resolved: pb.ResolveReply = field(default_factory=pb.ResolveReply)
    policy: pb.PolicyReport = field(default_factory=pb.PolicyReport)
    leftovers: Sequence[pb.Leftover] = ()
    removed: Sequence[pb.Leftover] = ()
    requests: list[Any] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    restore_events: Sequence[pb.RestoreDumpEvent] = ()
    watches: int = 0


class FakeAgent(AgentServicer):
    """Follows its script."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def _refuse(self, context: Any, error: PhaulError) -> None:
        context.set_trailing_metadata(((ERROR_METADATA_KEY, error_to_message(error).SerializeToString()),))
        await context.abort(grpc.StatusCode[error.grpc_status], error.message)

    async def _note(self, request: Any, context: Any) -> None:
        self._script.requests.append(request)
        if self._script.fail is not None:
            await self._refuse(context, self._script.fail)

    async def DescribeHost(self, request: pb.DescribeHostRequest, context: Any) -> facts.HostFacts:  # noqa: N802
        await self._note(request, context)
        return self._script.host

    async def Check(self, request: facts.MigrationRequest, context: Any) -> facts.CheckReport:  # noqa: N802
        await self._note(request, context)
        return self._script.check

    async def MeasureDirtyRate(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise AssertionError("no test asks a fake agent for it")

    async def FindLeftovers(self, request: pb.LeftoversRequest, context: Any) -> pb.LeftoversReply:  # noqa: N802
        await self._note(request, context)
        return pb.LeftoversReply(leftovers=self._script.leftovers)

    async def RemoveLeftovers(self, request: pb.LeftoversRequest, context: Any) -> pb.LeftoversReply:  # noqa: N802
        await self._note(request, context)
        return pb.LeftoversReply(leftovers=self._script.removed)

    async def StartMigration(self, request: facts.MigrationRequest, context: Any) -> pb.StartMigrationReply:  # noqa: N802
        await self._note(request, context)
        return pb.StartMigrationReply(migration_id=MIGRATION_ID)

    async def WatchMigration(  # noqa: N802
        self, request: pb.MigrationReference, context: Any
    ) -> AsyncIterator[pb.MigrationEvent]:
        script = self._script
        await self._note(request, context)
        if request.migration_id != MIGRATION_ID:
            await self._refuse(context, NoSuchMigrationError(f"no migration {request.migration_id}"))
        script.watches += 1
        for number, event in enumerate(script.events):
            if script.drop_after == number and script.watches == 1:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
            if script.hold_after == number:
                await script.released.wait()
                if script.cancel_events:
                    for last in script.cancel_events:
                        yield last
                    return
            yield event
            await asyncio.sleep(script.pause_seconds)

    async def RestoreDump(  # noqa: N802
        self, request: pb.RestoreDumpRequest, context: Any
    ) -> AsyncIterator[pb.RestoreDumpEvent]:
        await self._note(request, context)
        for event in self._script.restore_events:
            yield event

    async def CancelMigration(self, request: pb.MigrationReference, context: Any) -> pb.CancelMigrationReply:  # noqa: N802
        await self._note(request, context)
        if self._script.cancel.accepted:
            self._script.released.set()
        return self._script.cancel

    async def ListMigrations(self, request: pb.ListMigrationsRequest, context: Any) -> pb.ListMigrationsReply:  # noqa: N802
        await self._note(request, context)
        return pb.ListMigrationsReply(migrations=self._script.migrations)

    async def DescribeDoubt(self, request: pb.MigrationReference, context: Any) -> pb.DoubtReport:  # noqa: N802
        await self._note(request, context)
        return self._script.doubt

    async def ResolveMigration(self, request: pb.ResolveRequest, context: Any) -> pb.ResolveReply:  # noqa: N802
        await self._note(request, context)
        return self._script.resolved

    async def DescribePolicy(self, request: pb.DescribePolicyRequest, context: Any) -> pb.PolicyReport:  # noqa: N802
        await self._note(request, context)
        return self._script.policy


@asynccontextmanager
async def fake_agent(socket_path: Path, script: Script) -> AsyncIterator[Script]:
    """Serve the script at `socket_path` while the context lasts."""
    server = grpc.aio.server()
    add_AgentServicer_to_server(FakeAgent(script), server)
    server.add_insecure_port(f"unix:{socket_path}")
    await server.start()
    try:
        yield script
    finally:
        await server.stop(None)


def event(sequence: int, at_ms: float, **kind: Any) -> pb.MigrationEvent:
    """Make an event that happened `at_ms` after the first."""
    unix_us = START_UNIX_US + round(at_ms * 1000)
    return pb.MigrationEvent(migration_id=MIGRATION_ID, sequence=sequence, unix_us=unix_us, **kind)


def phase(sequence: int, at_ms: float, name: str) -> pb.MigrationEvent:
    """Make the event that a phase began."""
    return event(sequence, at_ms, phase_started=pb.PhaseStarted(phase=pb.Phase.Value(f"PHASE_{name.upper()}")))


def progress(sequence: int, at_ms: float, done_mib: int, total_mib: int, mib_per_second: int) -> pb.MigrationEvent:
    """Make an event of memory on its way."""
    return event(
        sequence,
        at_ms,
        progress=pb.Progress(
            phase=pb.PHASE_FREEZE,
            done_bytes=done_mib * MIB,
            total_bytes=total_mib * MIB,
            bytes_per_second=mib_per_second * MIB,
        ),
    )


REPORT = pb.MigrationReport(
    new_pid=4711,
    downtime_us=312_400,
    freeze_us=298_100,
    total_us=1_021_000,
    memory_bytes=271 * MIB,
    image_bytes=1_258_291,
    phases=[pb.PhaseDuration(phase=pb.PHASE_PREFLIGHT, duration_us=120_000)],
    steps=[
        pb.Step(name="dump", start_us=0, duration_us=201_000, host=pb.ROLE_SOURCE),
        pb.Step(name="send images", start_us=201_000, duration_us=12_000, host=pb.ROLE_SOURCE),
        pb.Step(name="restore", start_us=213_000, duration_us=60_300, host=pb.ROLE_DESTINATION),
        pb.Step(name="move addresses", start_us=273_300, duration_us=21_000, host=pb.ROLE_SOURCE),
        pb.Step(name="resume", start_us=298_100, duration_us=14_300, host=pb.ROLE_DESTINATION),
    ],
    processes=1,
    connections=1,
    addresses=["10.0.0.50/24@eth0"],
)

_BEGIN = (
    event(1, 0, started=pb.Started(root_pid=4711, command="redis-server", destination="b.example:7428")),
    phase(2, 0, "preflight"),
    event(
        3,
        110,
        started=pb.Started(
            root_pid=4711,
            command="redis-server",
            destination="b.example:7428",
            processes=1,
            memory_bytes=271 * MIB,
            connections=1,
        ),
    ),
    phase(4, 120, "prepare"),
    phase(5, 154, "freeze"),
    progress(6, 250, 100, 271, 1100),
    progress(7, 350, 200, 271, 1200),
)

COMPLETED = (
    *_BEGIN,
    phase(8, 355, "transfer"),
    phase(9, 367, "restore"),
    phase(10, 428, "switchover"),
    event(11, 430, warning=pb.Warning(message="2 connections waited in a listen queue")),
    phase(12, 449, "commit"),
    phase(13, 452, "resume"),
    phase(14, 467, "cleanup"),
    event(15, 1030, finished=pb.Finished(outcome=pb.OUTCOME_COMPLETED, report=REPORT)),
)

RESTORE_ERROR = facts.ErrorInfo(
    code="RestoreError",
    message="CRIU could not restore redis-server: the file /usr/lib/libssl.so.3 is missing on b.example",
    hint="Install the same openssl there, or take the library out of use, then try again.",
    detail="(00.012345)   4711: Error (criu/files-reg.c:2304): Can't open file libssl.so.3\nlog: /var/lib/x.log",
    notes=["the address could not be taken back from b.example: no answer"],
)

ROLLED_BACK = (
    *_BEGIN,
    phase(8, 355, "transfer"),
    phase(9, 367, "restore"),
    event(10, 400, finished=pb.Finished(outcome=pb.OUTCOME_ROLLED_BACK, error=RESTORE_ERROR)),
)

CANCELLED = event(
    99,
    500,
    finished=pb.Finished(
        outcome=pb.OUTCOME_ROLLED_BACK,
        error=facts.ErrorInfo(code="CancelledByUserError", message="the migration was cancelled"),
    ),
)
