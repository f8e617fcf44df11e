"""`PeerAgent` over gRPC: what the coordinator asks of the destination's agent.

Made by `agent.wiring` for each migration. Every call has a deadline; a peer that does not answer within it is an
`UnreachableError`, and what the peer itself reports is raised as it was there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import TypeVar

import grpc
import structlog

from phaul import __version__
from phaul.agent.client import MESSAGE_LIMIT_BYTES, reported_error
from phaul.agent.destination import Destination, own_address_towards
from phaul.agent.messages import from_message, to_message, wire_text
from phaul.agent.tls_tunnel import TlsTunnel
from phaul.criu.images import image_files
from phaul.errors import DefectError, NotTrustedError, PhaulError, UnreachableError
from phaul.migration.facts import AddressFacts, ConnectionFacts, DestinationFacts, FileFacts, HookRun
from phaul.migration.forecast import Outcome
from phaul.migration.hooks import HookScene
from phaul.migration.page_images import HashedImage, PageImage, Runs
from phaul.migration.peer import MOST_UNACCEPTED, Aborted, PageChannel, Reservation, RestoredCopy, Resumed
from phaul.migration.recovery import Word
from phaul.rpc.v1 import facts_pb2, peer_pb2
from phaul.rpc.v1.peer_pb2_grpc import PeerStub
from phaul.transfer.image_stream import chunks
from phaul.transfer.page_channel import open_page_channel
from phaul.trust.connections import asks_for_tls

log = structlog.get_logger(__name__)

R = TypeVar("R")

OBSERVE_SECONDS = 30.0  # reads every mapped file's build ID
ANSWER_SECONDS = 15.0
TRANSFER_SECONDS = 600.0  # the images that are not memory: megabytes
RESTORE_SECONDS = 3600.0  # grows with memory: the pages must have arrived and be read back
UNDO_SECONDS = 30.0
DIGEST_BYTES = 8  # XXH64
HOOK_SLACK_SECONDS = 30.0  # beside what the hooks may take: each that is over its time is given 2 s more
RUNS_A_MESSAGE = 100_000  # about 1 MB
WORD_SECONDS = 3.0  # answered out of memory
KEEPALIVE_MS = 3000  # between two pings while a call is under way, and for the answer to one


class GrpcPeer:
    """The agent of another host. Owns the gRPC channel, and the tunnel that it goes through, until `close`.

    Args:
        tunnel: TLS to that host; without one nothing is encrypted.
        pages_in_the_clear: where there is a tunnel, memory may all the same go as it is, if the destination wants that.
    """

    def __init__(
        self, destination: Destination, tunnel: TlsTunnel | None = None, *, pages_in_the_clear: bool = False
    ) -> None:
        self._destination = destination
        self._tunnel = tunnel
        self._pages_in_the_clear = pages_in_the_clear or tunnel is None
        self._answered = False
        self._channel = grpc.aio.insecure_channel(
            tunnel.target if tunnel else str(destination),
            options=[
                *([("grpc.default_authority", "localhost")] if tunnel else []),
                ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
                ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
                ("grpc.enable_http_proxy", 0),  # hosts that migrate to each other are not behind a web proxy
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2000),
                # A link that was cut says nothing: a peer that does not answer a ping is gone.
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
            ],
        )
        self._stub = PeerStub(self._channel)

    @property
    def name(self) -> str:
        """HOST:PORT."""
        return str(self._destination)

    async def close(self) -> None:
        """Give the connection back."""
        await self._channel.close(None)
        del self._channel, self._stub  # the connection goes with the last reference, not with close
        if self._tunnel is not None:
            await self._tunnel.close()

    async def own_address(self) -> str:
        """The address of this host that the kernel uses towards the peer."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._destination.host, self._destination.port, type=socket.SOCK_DGRAM)
        except OSError:
            return ""
        return own_address_towards(found[0][0], (str(found[0][4][0]), int(found[0][4][1])))

    async def observe(
        self,
        ids: Sequence[int],
        files: Sequence[FileFacts],
        hooks: Sequence[str] = (),
        addresses: Sequence[AddressFacts] = (),
        macs: Sequence[str] = (),
    ) -> DestinationFacts:
        """What the destination is, and has of what the workload needs."""
        request = peer_pb2.ObserveRequest(
            ids=ids,
            files=(to_message(file, facts_pb2.FileFacts) for file in files),
            phaul_version=__version__,
            hooks=map(wire_text, hooks),
            addresses=(to_message(address, facts_pb2.AddressFacts) for address in addresses),
            macs=macs,
        )
        return from_message(await self._call(self._stub.Observe(request, timeout=OBSERVE_SECONDS)), DestinationFacts)

    async def prepare(self, reservation: Reservation) -> PageChannel:
        """Reserve, and connect to the page receiver that was made."""
        request = to_message(reservation, peer_pb2.PrepareRequest)
        return await self._open(await self._call(self._stub.Prepare(request, timeout=ANSWER_SECONDS)))

    async def reopen(self, migration_id: str) -> PageChannel:
        """Connect anew, in place of a page channel that broke."""
        request = peer_pb2.ReopenPagesRequest(migration_id=migration_id)
        return await self._open(await self._call(self._stub.ReopenPages(request, timeout=ANSWER_SECONDS)))

    async def _open(self, reply: peer_pb2.PrepareReply) -> PageChannel:
        if not reply.sealed and not self._pages_in_the_clear:
            raise NotTrustedError(
                f"the agent of {self.name} does not encrypt memory (--page-encryption off), and this host's does",
                hint="Take the option away there; or, on a network that you trust, start both agents with it.",
            )
        if not reply.sealed and self._tunnel is not None:
            log.warning("page_channel.in_the_clear", peer=self.name)
        return await open_page_channel(
            self._destination.host, reply.page_channel_port, reply.token, sealed=reply.sealed
        )

    async def send_images(self, migration_id: str, directory: Path) -> int:
        """Send the image files; they are read in a thread, one chunk ahead of the wire."""

        async def stream() -> AsyncIterator[peer_pb2.ImageChunk]:
            for path in image_files(directory):
                for chunk in chunks(path):
                    yield peer_pb2.ImageChunk(
                        migration_id=migration_id,
                        name=chunk.name,
                        data=chunk.data,
                        last=chunk.last,
                        sha256=chunk.sha256,
                        size_bytes=chunk.size_bytes,
                    )

        reply = await self._call(self._stub.SendImages(stream(), timeout=TRANSFER_SECONDS))
        return reply.bytes

    async def hashed_pages(self, migration_id: str, pending: Sequence[PageImage]) -> tuple[HashedImage, ...]:
        """Have it hashed over there."""
        parts = [peer_pb2.HashedPagesRequest(migration_id=migration_id)]
        for image in pending:
            for start in range(0, len(image.runs), RUNS_A_MESSAGE):
                addresses, pages = zip(*image.runs[start : start + RUNS_A_MESSAGE], strict=True)
                parts.append(peer_pb2.HashedPagesRequest(name=image.name, addresses=addresses, pages=pages))
        images: list[HashedImage] = []
        runs: list[tuple[int, int]] = []
        digests: list[bytes] = []

        async def collect() -> None:
            call = self._stub.HashedPages(iter(parts), timeout=RESTORE_SECONDS)
            try:
                async for part in call:
                    runs.extend(zip(part.addresses, part.pages, strict=True))
                    digests.extend(
                        part.digests[at : at + DIGEST_BYTES] for at in range(0, len(part.digests), DIGEST_BYTES)
                    )
                    if part.last:
                        images.append(HashedImage(part.name, tuple(runs), tuple(digests), part.block_bytes))
                        runs.clear()
                        digests.clear()
            finally:
                call.cancel()

        await self._call(collect())
        return tuple(images)

    async def received_content(self, migration_id: str, name: str, runs: Runs) -> bytes:
        """A piece of what arrived."""
        request = peer_pb2.ReceivedContentRequest(
            migration_id=migration_id,
            name=name,
            addresses=(address for address, _ in runs),
            pages=(pages for _, pages in runs),
        )
        return (await self._call(self._stub.ReceivedContent(request, timeout=ANSWER_SECONDS))).content

    async def restore(self, migration_id: str, unaccepted: Sequence[ConnectionFacts] = ()) -> RestoredCopy:
        """Have the copy restored and held."""
        told = (to_message(each, facts_pb2.ConnectionFacts) for each in unaccepted[:MOST_UNACCEPTED])
        request = peer_pb2.RestoreRequest(migration_id=migration_id, unaccepted=told)
        return from_message(await self._call(self._stub.Restore(request, timeout=RESTORE_SECONDS)), RestoredCopy)

    async def resume(self, migration_id: str) -> Resumed:
        """Have the copy run."""
        request = peer_pb2.ResumeRequest(migration_id=migration_id)
        return from_message(await self._call(self._stub.Resume(request, timeout=UNDO_SECONDS)), Resumed)

    async def learn(self, migration_id: str, outcome: Outcome) -> None:
        """Tell it; it is only for predictions."""
        request = peer_pb2.LearnRequest(migration_id=migration_id, lesson=to_message(outcome, peer_pb2.Lesson))
        try:
            await self._call(self._stub.Learn(request, timeout=WORD_SECONDS))
        except PhaulError as error:
            log.debug("peer.not_taught", migration_id=migration_id, reason=error.message)

    async def abort(self, migration_id: str, reason: str, deadline_seconds: float = 0) -> Aborted:
        """Have everything undone."""
        request = peer_pb2.AbortRequest(migration_id=migration_id, reason=wire_text(reason))
        timeout = UNDO_SECONDS + deadline_seconds
        return from_message(await self._call(self._stub.Abort(request, timeout=timeout)), Aborted)

    async def run_hooks(self, stage: str, scene: HookScene, deadline_seconds: float) -> tuple[HookRun, ...]:
        """Have them run."""
        request = peer_pb2.RunHooksRequest(stage=stage, scene=to_message(scene, peer_pb2.HookScene))
        timeout = deadline_seconds + HOOK_SLACK_SECONDS
        reply = await self._call(self._stub.RunHooks(request, timeout=timeout))
        return tuple(from_message(ran, HookRun) for ran in reply.hooks)

    async def word(self, migration_id: str) -> Word:
        """Ask how a migration stands over there."""
        request = peer_pb2.AskWordRequest(migration_id=migration_id)
        try:
            reply = await self._call(self._stub.AskWord(request, timeout=WORD_SECONDS))
        except PhaulError:
            return Word.NO_ANSWER
        return Word[peer_pb2.Word.Name(reply.word).removeprefix("WORD_")]

    async def _call(self, call: Awaitable[R]) -> R:
        try:
            reply = await call
        except grpc.aio.AioRpcError as error:
            # Its frames hold the call, and a call that exists holds its connection open: for as long as the error does.
            raise await self._trust_error(error) or self._known(error) from error.with_traceback(None)
        finally:
            del call
        self._answered = True
        return reply

    async def _trust_error(self, error: grpc.aio.AioRpcError) -> PhaulError | None:
        """What TLS has to say of a call that did not get through; None where it is nothing.

        A peer that has answered before is silent and not refused: something was touched, and who asks asks again.
        """
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return None
        if self._tunnel is not None:
            failure = self._tunnel.failure
            if failure is not None and self._answered:
                return UnreachableError(failure.message, hint=failure.hint, detail=failure.detail)
            return failure
        if self._answered or not await asks_for_tls(self._destination.host, self._destination.port):
            return None
        return NotTrustedError(
            f"the agent of {self.name} speaks TLS only, and this host's agent has no certificate",
            hint="`phaul trust issue HOST` on the authority's host makes one; start the agent without --insecure then.",
        )

    def _known(self, error: grpc.aio.AioRpcError) -> PhaulError:
        """Put the failure of a call into one of our errors: what the peer reported, or what became of the call."""
        reported = reported_error(error)
        if reported is not None:
            return reported
        match error.code():
            case grpc.StatusCode.UNAVAILABLE:
                return UnreachableError(
                    f"the phaul agent of {self.name} cannot be reached",
                    hint="Is `phaul agent` running there, and does it listen on an address that is reachable "
                    "from here (--listen)? Are ports closed between the hosts?",
                    detail=error.details() or "",
                )
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return UnreachableError(f"the phaul agent of {self.name} did not answer in time")
            case grpc.StatusCode.UNIMPLEMENTED:
                return UnreachableError(
                    f"the phaul agent of {self.name} is of another version and does not know this call",
                    hint="Install the same version of phaul on both hosts.",
                )
            case code:
                why = error.details() or code
                return DefectError(f"the phaul agent of {self.name} failed: {why}", detail=code.name)
