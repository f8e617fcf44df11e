"""The person's side of the agent: what `cli` (and a script) calls over the Unix socket of this host.

It turns every failure into a `phaul.errors.PhaulError`, so that nobody above needs to know gRPC. It never starts an
agent, never talks to another host and never retries: only who calls knows whether asking again is safe.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, cast

import grpc

from phaul.agent.messages import error_from_message
from phaul.config import DEFAULT_SOCKET
from phaul.errors import DefectError, NotTrustedError, PhaulError, UnreachableError
from phaul.rpc.v1.agent_pb2 import (
    CancelMigrationReply,
    Choice,
    DescribeHostRequest,
    DescribePolicyRequest,
    DoubtReport,
    Leftover,
    LeftoversRequest,
    ListMigrationsRequest,
    MigrationEvent,
    MigrationReference,
    MigrationSummary,
    PolicyReport,
    ResolveReply,
    ResolveRequest,
    RestoreDumpEvent,
    RestoreDumpRequest,
)
from phaul.rpc.v1.agent_pb2_grpc import AgentStub
from phaul.rpc.v1.dirty_rate_pb2 import DirtyRateReport, DirtyRateRequest
from phaul.rpc.v1.facts_pb2 import CheckReport, ErrorInfo, HostFacts, MigrationRequest

if TYPE_CHECKING:  # mypy-protobuf 5.1 declares it, the generated module does not have it
    from phaul.rpc.v1.agent_pb2_grpc import AgentAsyncStub

ERROR_METADATA_KEY = "phaul-error-bin"  # trailing metadata: a serialized ErrorInfo
ANSWER_SECONDS = 10.0  # what the agent answers out of its own memory, or by probing its own host
CHECK_SECONDS = 60.0  # asks the other host, and reads every mapped file of the workload
RESOLVE_SECONDS = 3600.0  # restores the copy from its images: grows with memory
MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024  # a tree with 100 000 mapped files makes about 20 MB of facts

Reply = TypeVar("Reply")


class AgentClient:
    """A connection to the agent of this host.

    Owns the gRPC channel from entering to leaving its context; entering raises `UnreachableError` where no agent
    listens and `NotTrustedError` where we may not use its socket.
    """

    def __init__(self, socket_path: Path = DEFAULT_SOCKET) -> None:
        self._socket_path = socket_path
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(_try_socket, self._socket_path)
        self._channel = grpc.aio.insecure_channel(
            f"unix:{self._socket_path}",
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
                ("grpc.default_authority", "localhost"),  # a socket path is no valid HTTP/2 authority
            ],
        )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    @property
    def socket_path(self) -> Path:
        """Where the agent was looked for."""
        return self._socket_path

    async def describe_host(self) -> HostFacts:
        """What this host is and can do."""
        return await self._call(self._stub.DescribeHost(DescribeHostRequest(), timeout=ANSWER_SECONDS))

    async def check(self, request: MigrationRequest) -> CheckReport:
        """Preflight alone; nothing is touched."""
        return await self._call(self._stub.Check(request, timeout=CHECK_SECONDS))

    async def dirty_rate(self, request: DirtyRateRequest) -> DirtyRateReport:
        """How fast a workload writes; nothing is stopped or moved."""
        return await self._call(self._stub.MeasureDirtyRate(request, timeout=request.seconds + CHECK_SECONDS))

    async def start(self, request: MigrationRequest) -> str:
        """Start a migration in the agent; gives its ID. `UnreachableError` leaves open whether it was started."""
        reply = await self._call(self._stub.StartMigration(request, timeout=CHECK_SECONDS))
        return reply.migration_id

    async def watch(self, migration_id: str) -> AsyncIterator[MigrationEvent]:
        """Every event of a migration from its first on, until it has ended. Leaving off changes nothing there."""
        call = self._stub.WatchMigration(MigrationReference(migration_id=migration_id))
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error
        finally:
            call.cancel()

    async def restore_dump(self, request: RestoreDumpRequest) -> AsyncIterator[RestoreDumpEvent]:
        """Restore a dump; the last event says what runs. Leaving off before that has it undone."""
        call = self._stub.RestoreDump(request)
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error
        finally:
            call.cancel()

    async def cancel(self, migration_id: str) -> CancelMigrationReply:
        """Ask for a rollback; the reply says whether it was still in time, and why not."""
        reference = MigrationReference(migration_id=migration_id)
        return await self._call(self._stub.CancelMigration(reference, timeout=ANSWER_SECONDS))

    async def list_migrations(self) -> tuple[MigrationSummary, ...]:
        """Migrations that this host takes or took part in, newest first."""
        reply = await self._call(self._stub.ListMigrations(ListMigrationsRequest(), timeout=ANSWER_SECONDS))
        return tuple(reply.migrations)

    async def describe_doubt(self, migration_id: str) -> DoubtReport:
        """What both hosts know of a migration, and what may be decided here; asks the other host."""
        reference = MigrationReference(migration_id=migration_id)
        return await self._call(self._stub.DescribeDoubt(reference, timeout=CHECK_SECONDS))

    async def resolve(self, migration_id: str, choice: Choice.ValueType, *, force: bool) -> ResolveReply:
        """Do what a person decided. `UnreachableError` leaves open whether it was done."""
        request = ResolveRequest(migration_id=migration_id, choice=choice, force=force)
        return await self._call(self._stub.ResolveMigration(request, timeout=RESOLVE_SECONDS))

    async def describe_policy(self) -> PolicyReport:
        """The policy that is in force."""
        return await self._call(self._stub.DescribePolicy(DescribePolicyRequest(), timeout=ANSWER_SECONDS))

    async def find_leftovers(self) -> tuple[Leftover, ...]:
        """What earlier crashes have left; touches nothing."""
        reply = await self._call(self._stub.FindLeftovers(LeftoversRequest(), timeout=CHECK_SECONDS))
        return tuple(reply.leftovers)

    async def remove_leftovers(self) -> tuple[Leftover, ...]:
        """Remove it; each with what became of it."""
        reply = await self._call(self._stub.RemoveLeftovers(LeftoversRequest(), timeout=RESOLVE_SECONDS))
        return tuple(reply.leftovers)

    @property
    def _stub(self) -> AgentAsyncStub:
        if self._channel is None:
            raise DefectError("the agent client was used outside its context")
        return AgentStub(self._channel)

    async def _call(self, call: Awaitable[Reply]) -> Reply:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error

    def _translate(self, error: grpc.aio.AioRpcError) -> PhaulError:
        reported = reported_error(error)
        if reported is not None:
            return reported
        match error.code():
            case grpc.StatusCode.UNAVAILABLE:
                return UnreachableError(
                    "the phaul agent of this host stopped answering",
                    hint="See `systemctl status phaul-agent`, then `phaul status` once it runs again.",
                    detail=error.details() or "",
                )
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return UnreachableError(
                    "the phaul agent of this host did not answer in time",
                    hint="See what it is doing with `phaul status` and in its log.",
                    detail=error.details() or "",
                )
            case grpc.StatusCode.UNIMPLEMENTED:
                return UnreachableError(
                    "the phaul agent of this host is of another version and does not know this call",
                    hint="Restart it after the update: `systemctl restart phaul-agent`.",
                    detail=error.details() or "",
                )
            case code:
                return DefectError(f"the agent failed: {error.details() or code}", detail=f"gRPC status {code.name}")


def reported_error(error: grpc.aio.AioRpcError) -> PhaulError | None:
    """Make the error again that an agent put into the trailing metadata of a failed call; None where there is none."""
    # grpc-stubs types one entry where there are many (1.53); grpc.aio.Metadata iterates over pairs.
    for key, value in cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()):
        if key == ERROR_METADATA_KEY and isinstance(value, bytes):
            return error_from_message(ErrorInfo.FromString(value))
    return None


def _try_socket(path: Path) -> None:
    """Connect and hang up, because gRPC says UNAVAILABLE for everything and only tells why in prose."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(str(path))
        except OSError as error:
            raise _connect_error(path, error) from error


def _connect_error(path: Path, error: OSError) -> PhaulError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return UnreachableError(
            f"no phaul agent is running on this host (no socket at {path})",
            hint="Start it: `systemctl start phaul-agent`, or `phaul agent` in another terminal.",
        )
    if error.errno in (errno.ECONNREFUSED, errno.ENOTSOCK, errno.EPROTOTYPE):
        return UnreachableError(
            f"no phaul agent is running on this host (nothing listens at {path})",
            hint="Start it: `systemctl start phaul-agent`, or `phaul agent` in another terminal.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotTrustedError(
            f"this user may not talk to the phaul agent ({path})",
            hint="Run it as root, for example with sudo; or have root name this user in the policy.",
        )
    return UnreachableError(f"the phaul agent cannot be reached at {path}: {error.strerror or error}")
