"""The `Peer` service: what this host does for a migration that comes in. One `Arrival` a migration does the work.

Made by `agent.server`. Steps of one migration are taken one after the other, and a step that is repeated while it is
under way or done gives the same answer: the source may ask again after a lost reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import structlog

from phaul.agent.history import History
from phaul.agent.messages import from_message, to_message
from phaul.agent.page_listener import ExpectedPages, PageListener
from phaul.agent.rpc_errors import Context, reports_errors
from phaul.errors import NoSuchMigrationError, PhaulError, PreflightError
from phaul.migration.coordinator import Host
from phaul.migration.destination import SMALL_IMAGES_BYTES, Arrival, room_bytes
from phaul.migration.events import Outcome, Role
from phaul.migration.facts import DestinationFacts, FileFacts
from phaul.migration.interfaces import Reservation
from phaul.rpc.v1 import facts_pb2, peer_pb2
from phaul.rpc.v1.peer_pb2_grpc import PeerServicer
from phaul.transfer.image_stream import Chunk, ImageWriter

log = structlog.get_logger(__name__)

R = TypeVar("R")

REMEMBERED = 32  # migrations that have ended, so that a repeated Resume gets its answer again


@dataclass(slots=True, eq=False)
class _Incoming:
    """One migration and the answers it has given. A step under way or done stands in `answers`."""

    arrival: Arrival
    pages: ExpectedPages
    answers: dict[str, asyncio.Future[Any]] = field(default_factory=dict)


class PeerService(PeerServicer):
    """Serves other agents. Owns the incoming migrations until they have ended."""

    def __init__(self, host: Host, listener: PageListener, history: History) -> None:
        self._host = host
        self._listener = listener
        self._history = history
        self._incoming: dict[str, _Incoming] = {}
        self._preparing = asyncio.Lock()

    @reports_errors
    async def Observe(self, request: peer_pb2.ObserveRequest, context: Context) -> facts_pb2.DestinationFacts:
        """What this host is, and has of what a workload needs."""
        files = tuple(from_message(file, FileFacts) for file in request.files)
        (taken, seen), host, local = await asyncio.gather(
            self._host.workload.observe(request.ids, files),
            self._host.describe(),
            self._host.network.local_addresses(),
        )
        facts = DestinationFacts(host=host, files=seen, taken_ids=taken, local_addresses=local)
        return to_message(facts, facts_pb2.DestinationFacts)

    @reports_errors
    async def Prepare(self, request: peer_pb2.PrepareRequest, context: Context) -> peer_pb2.PrepareReply:
        """Reserve room and a page channel."""
        async with self._preparing:
            incoming = self._incoming.get(request.migration_id)
            if incoming is None:
                incoming = await self._admit(from_message(request, Reservation))
        return peer_pb2.PrepareReply(page_channel_port=self._listener.port, token=incoming.pages.token)

    async def _admit(self, reservation: Reservation) -> _Incoming:
        twin = next(
            (
                other.arrival.reservation
                for other in self._incoming.values()
                if other.arrival.reservation.root_pid == reservation.root_pid and not other.arrival.ended
            ),
            None,
        )
        if twin is not None:
            raise PreflightError(
                f"PID {reservation.root_pid} is expected here already, by migration {twin.migration_id}",
                hint="Wait until that one has ended, or cancel it.",
            )
        arrival = Arrival(reservation, self._host)
        self._history.begin(
            reservation.migration_id,
            Role.DESTINATION,
            reservation.source_host,
            reservation.root_pid,
            reservation.command,
        )
        try:
            directory = await arrival.prepare()
        except BaseException as error:
            await arrival.abort()
            self._history.end(reservation.migration_id, Outcome.REFUSED, error=_as_phaul(error))
            raise
        pages = self._listener.expect(directory, room_bytes(reservation.memory_bytes))
        incoming = _Incoming(arrival, pages)
        self._incoming[reservation.migration_id] = incoming
        self._forget_oldest()
        log.info("arrival.prepared", migration_id=reservation.migration_id, source=reservation.source_host)
        return incoming

    @reports_errors
    async def SendImages(
        self, request: AsyncIterator[peer_pb2.ImageChunk], context: Context
    ) -> peer_pb2.SendImagesReply:
        """Write and verify the images."""
        writer: ImageWriter | None = None
        try:
            async for message in request:
                if writer is None:
                    arrival = self._find(message.migration_id).arrival
                    writer = ImageWriter(arrival.images, SMALL_IMAGES_BYTES)
                writer.write(
                    Chunk(
                        message.name, message.data, message.last, sha256=message.sha256, size_bytes=message.size_bytes
                    )
                )
            if writer is None:
                return peer_pb2.SendImagesReply()
            writer.close()
        finally:
            if writer is not None:
                writer.discard()
        return peer_pb2.SendImagesReply(images=writer.images, bytes=writer.bytes)

    @reports_errors
    async def Restore(self, request: peer_pb2.RestoreRequest, context: Context) -> peer_pb2.RestoreReply:
        """Restore and hold."""
        incoming = self._find(request.migration_id)
        copy = await self._once(incoming, "restore", lambda: incoming.arrival.restore(incoming.pages.received))
        return to_message(copy, peer_pb2.RestoreReply)

    @reports_errors
    async def Resume(self, request: peer_pb2.ResumeRequest, context: Context) -> peer_pb2.ResumeReply:
        """Let the copy run."""
        incoming = self._find(request.migration_id)
        try:
            warnings = await self._once(incoming, "resume", incoming.arrival.resume)
        except PhaulError as error:
            self._history.end(request.migration_id, Outcome.LOST, error=error)
            raise
        self._history.end(request.migration_id, Outcome.COMPLETED)
        return peer_pb2.ResumeReply(warnings=warnings)

    @reports_errors
    async def Abort(self, request: peer_pb2.AbortRequest, context: Context) -> peer_pb2.AbortReply:
        """Undo everything. A migration that is not known here has nothing to undo."""
        incoming = self._incoming.get(request.migration_id)
        if incoming is None:
            return peer_pb2.AbortReply()
        log.info("arrival.aborted", migration_id=request.migration_id, reason=request.reason)
        leftovers = await self._once(incoming, "abort", lambda: self._abort(incoming))
        self._history.end(request.migration_id, Outcome.ROLLED_BACK)
        self._incoming.pop(request.migration_id, None)
        return peer_pb2.AbortReply(leftovers=leftovers)

    async def close(self) -> None:
        """Undo what has not been resumed: the agent ends, and CRIU with it."""
        for incoming in list(self._incoming.values()):
            if not incoming.arrival.resumed:
                await self._abort(incoming)
            await incoming.arrival.settled()

    async def _abort(self, incoming: _Incoming) -> tuple[str, ...]:
        incoming.pages.cancel()
        restoring = incoming.answers.get("restore")
        if restoring is not None and not restoring.done():
            restoring.cancel()
            await asyncio.wait([restoring])
        return await incoming.arrival.abort()

    async def _once(self, incoming: _Incoming, step: str, act: Callable[[], Awaitable[R]]) -> R:
        """Do a step that was not begun yet; give the answer of one that was. A caller that leaves does not end it."""
        if step not in incoming.answers:
            incoming.answers[step] = asyncio.ensure_future(act())
        return cast("R", await asyncio.shield(incoming.answers[step]))

    def _forget_oldest(self) -> None:
        ended = [migration_id for migration_id, incoming in self._incoming.items() if incoming.arrival.ended]
        for migration_id in ended[:-REMEMBERED]:
            del self._incoming[migration_id]

    def _find(self, migration_id: str) -> _Incoming:
        try:
            return self._incoming[migration_id]
        except KeyError:
            raise NoSuchMigrationError(
                f"migration {migration_id} is not known on this host",
                hint="Its agent was restarted, or it was aborted.",
            ) from None


def _as_phaul(error: BaseException) -> PhaulError:
    return error if isinstance(error, PhaulError) else PhaulError(str(error) or type(error).__name__)
