"""The `Peer` service: what other agents ask of this host. Translates gRPC; `migration.arrivals` does the work.

Made by `agent.server`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import structlog

from phaul.agent import requests
from phaul.agent.gatekeeper import Gatekeeper
from phaul.agent.history import History
from phaul.agent.messages import to_message
from phaul.agent.page_listener import PageListener
from phaul.agent.peer_names import peer_host
from phaul.agent.rpc_errors import Context, reports_errors, reports_stream_errors
from phaul.errors import PhaulError, TransferError
from phaul.migration.arrivals import Arrivals
from phaul.migration.destination import SMALL_IMAGES_BYTES
from phaul.migration.events import Outcome, Role
from phaul.migration.facts import DestinationFacts
from phaul.migration.host import Host
from phaul.migration.journal import Mark, last_of
from phaul.migration.learning import learn_from_arrival
from phaul.migration.peer import Reservation
from phaul.migration.reception import Journals
from phaul.migration.recovery import destination_word, source_word
from phaul.migration.resolution import in_doubt
from phaul.migration.settlement import died_after_commit
from phaul.rpc.v1 import facts_pb2, peer_pb2
from phaul.rpc.v1.peer_pb2_grpc import PeerServicer
from phaul.transfer.image_stream import Chunk, ImageWriter

log = structlog.get_logger(__name__)

M = TypeVar("M")

STALL_SECONDS = 60.0  # between two pieces of a stream
ENTRIES_A_MESSAGE = 50_000  # runs and digests: about 1 MB


async def _in_time(messages: AsyncIterator[M]) -> AsyncIterator[M]:
    """The messages of a stream, as long as one comes from time to time. Raises `TransferError` else."""
    while True:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise TransferError(f"nothing came for {STALL_SECONDS:g} s") from error
        yield message


class HistoryObserver:
    """`ArrivalObserver` that writes the history and the log."""

    def __init__(self, history: History) -> None:
        self._history = history

    def arrived(self, reservation: Reservation) -> None:
        """A migration comes in."""
        log.info("arrival.prepared", migration_id=reservation.migration_id, source=reservation.source_host)
        self._history.begin(
            reservation.migration_id,
            Role.DESTINATION,
            reservation.source_host,
            reservation.root_pid,
            reservation.command,
            f"{reservation.source_name or reservation.source_host} at {reservation.source_peer}",
        )

    def settled(self, migration_id: str, outcome: Outcome, error: PhaulError | None) -> None:
        """It has ended, or is in doubt."""
        if outcome is Outcome.IN_DOUBT and error is None:
            error = in_doubt(migration_id, Role.DESTINATION)
        log.info("arrival.settled", migration_id=migration_id, outcome=str(outcome))
        self._history.end(migration_id, outcome, error=error)


class PeerService(PeerServicer):
    """Serves other agents. Holds nothing of its own.

    Args:
        killed_here: says whether the tree of a migration that left this host was killed in this agent's life.
    """

    def __init__(
        self,
        host: Host,
        arrivals: Arrivals,
        journals: Journals,
        listener: PageListener,
        killed_here: Callable[[str], bool],
        gate: Gatekeeper,
    ) -> None:
        self._gate = gate
        self._host = host
        self._arrivals = arrivals
        self._journals = journals
        self._listener = listener
        self._killed_here = killed_here

    @reports_errors
    async def Observe(self, request: peer_pb2.ObserveRequest, context: Context) -> facts_pb2.DestinationFacts:
        """What this host is, and has of what a workload needs."""
        self._gate.require_sender(context, "check")
        ids, files = requests.observed(request)
        (taken, seen, occupied), host, local, claims, heard = await asyncio.gather(
            self._host.workload.observe(ids, files),
            self._host.describe(),
            self._host.network.local_addresses(),
            self._host.network.claims(requests.probed(request)),
            self._host.network.heard(requests.wanted_macs(request)),
        )
        hooks = self._host.hooks.find(requests.hook_files(request.hooks))
        facts = DestinationFacts(host, seen, taken, local, occupied, hooks, claims, heard)
        return to_message(facts, facts_pb2.DestinationFacts)

    @reports_errors
    async def Prepare(self, request: peer_pb2.PrepareRequest, context: Context) -> peer_pb2.PrepareReply:
        """Reserve room and a page channel."""
        self._gate.require_sender(context, "migration.asked")
        reservation = requests.reservation(request)
        self._own(reservation.migration_id, context)  # it may be asked for again
        source = f"{peer_host(context.peer())}:{reservation.source_port}"
        token = await self._arrivals.prepare(
            dataclasses.replace(reservation, source_peer=source, source_name=self._gate.source_name(context))
        )
        return self._channel(token)

    @reports_errors
    async def ReopenPages(self, request: peer_pb2.ReopenPagesRequest, context: Context) -> peer_pb2.PrepareReply:
        """Another page channel."""
        token = await self._arrivals.reopen(self._own(request.migration_id, context))
        return self._channel(token)

    def _channel(self, token: bytes) -> peer_pb2.PrepareReply:
        return peer_pb2.PrepareReply(page_channel_port=self._listener.port, token=token, sealed=self._listener.sealed)

    @reports_errors
    async def SendImages(
        self, request: AsyncIterator[peer_pb2.ImageChunk], context: Context
    ) -> peer_pb2.SendImagesReply:
        """Write and verify the images."""
        writer: ImageWriter | None = None
        try:
            async for message in _in_time(request):
                if writer is None:
                    migration_id = self._own(message.migration_id, context)
                    writer = ImageWriter(self._arrivals.images(migration_id), SMALL_IMAGES_BYTES)
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

    @reports_stream_errors
    async def HashedPages(
        self, request: AsyncIterator[peer_pb2.HashedPagesRequest], context: Context
    ) -> AsyncIterator[peer_pb2.HashedPagesPart]:
        """Hash what came over the page channel."""
        messages: list[peer_pb2.HashedPagesRequest] = []
        migration_id = ""
        async for message in _in_time(request):
            migration_id = migration_id or self._own(message.migration_id, context)
            messages.append(message)
        for image in await self._arrivals.hashed_pages(
            requests.migration_id(migration_id), requests.pending(messages[1:])
        ):
            for start in range(0, max(len(image.runs), len(image.digests), 1), ENTRIES_A_MESSAGE):
                end = start + ENTRIES_A_MESSAGE
                runs = image.runs[start:end]
                yield peer_pb2.HashedPagesPart(
                    name=image.name,
                    addresses=(address for address, _ in runs),
                    pages=(pages for _, pages in runs),
                    digests=b"".join(image.digests[start:end]),
                    block_bytes=image.block_bytes,
                    last=end >= max(len(image.runs), len(image.digests)),
                )

    @reports_errors
    async def ReceivedContent(
        self, request: peer_pb2.ReceivedContentRequest, context: Context
    ) -> peer_pb2.ReceivedContentReply:
        """Read a block back."""
        migration_id = self._own(request.migration_id, context)
        content = await self._arrivals.received_content(migration_id, request.name, requests.pages(request))
        return peer_pb2.ReceivedContentReply(content=content)

    @reports_errors
    async def Restore(self, request: peer_pb2.RestoreRequest, context: Context) -> peer_pb2.RestoreReply:
        """Restore and hold."""
        unaccepted = requests.unaccepted(request)
        copy = await self._arrivals.restore(self._own(request.migration_id, context), unaccepted)
        return to_message(copy, peer_pb2.RestoreReply)

    @reports_errors
    async def RunHooks(self, request: peer_pb2.RunHooksRequest, context: Context) -> peer_pb2.RunHooksReply:
        """Run action scripts."""
        self._gate.require_sender(context, "migration.step")
        stage, scene = requests.hooks_of_stage(request)
        self._own(scene.migration_id, context)
        runs = await self._arrivals.run_hooks(stage, scene)
        return peer_pb2.RunHooksReply(hooks=(to_message(ran, facts_pb2.HookRun) for ran in runs))

    @reports_errors
    async def Resume(self, request: peer_pb2.ResumeRequest, context: Context) -> peer_pb2.ResumeReply:
        """Let the copy run."""
        resumed = await self._arrivals.resume(self._own(request.migration_id, context))
        return to_message(resumed, peer_pb2.ResumeReply)

    @reports_errors
    async def Learn(self, request: peer_pb2.LearnRequest, context: Context) -> peer_pb2.LearnReply:
        """Keep what a migration has taught."""
        journal = self._journals.find(self._own(request.migration_id, context))
        if reserved := last_of(journal.records if journal else (), Mark.RESERVED):
            outcome = requests.lesson(request.lesson)
            await learn_from_arrival(self._host.outcomes, str(reserved.data["source_host"]), outcome)
        return peer_pb2.LearnReply()

    @reports_errors
    async def Abort(self, request: peer_pb2.AbortRequest, context: Context) -> peer_pb2.AbortReply:
        """Undo everything."""
        log.info("arrival.abort_asked", migration_id=request.migration_id, reason=request.reason)
        aborted = await self._arrivals.abort(self._own(request.migration_id, context), requests.reason(request.reason))
        return to_message(aborted, peer_pb2.AbortReply)

    @reports_errors
    async def AskWord(self, request: peer_pb2.AskWordRequest, context: Context) -> peer_pb2.AskWordReply:
        """How a migration stands here."""
        migration_id = requests.migration_id(request.migration_id)  # either side may ask
        journal = self._journals.find(migration_id)
        records = journal.records if journal else ()
        if last_of(records, Mark.RESERVED):
            word = destination_word(records)
        else:
            killed = self._killed_here(migration_id)
            if journal and not killed:
                killed = await died_after_commit(journal, self._host.workload)
            word = source_word(records, killed=killed)
        return peer_pb2.AskWordReply(word=peer_pb2.Word.Value(f"WORD_{word.name}"))

    def _own(self, text: str, context: Context) -> str:
        """Give back the ID of a migration, which is nobody's but its source's."""
        migration_id = requests.migration_id(text)
        self._gate.require_source(context, "migration.step", self._arrivals.source_name(migration_id))
        return migration_id
