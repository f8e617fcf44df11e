"""The port on which memory arrives: who connects shows a token, and its pages go where the token says.

Owned by `agent.server`; `agent.peer_service` has it expect one channel a migration. A connection that shows no token in
time, or one that nobody waits for, is closed and nothing else happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from phaul.agent.strangers import Strangers
from phaul.errors import TransferError
from phaul.migration.page_images import HashedImage, PageImage, Runs
from phaul.migration.reception import ReceivedPages
from phaul.observe.seldom import Seldom
from phaul.system.memory import page_size_bytes
from phaul.transfer import page_digests
from phaul.transfer.page_channel import ACCEPTED, TOKEN_BYTES
from phaul.transfer.page_receiver import PageReceiver
from phaul.transfer.page_store import PagemapEncoder, PageStore, Received, forget_rounds
from phaul.transfer.page_stream import PageStream
from phaul.transfer.spare_room import SpareRoom
from phaul.transfer.wire import SealedWire, Side, Wire, channel_name

log = structlog.get_logger(__name__)

TOKEN_TIMEOUT_SECONDS = 10.0
ACCEPT_PAUSE_SECONDS = 0.1  # after a connection that could not be accepted
BACKLOG = 1024  # where it is full, who connects waits for a second
MOST_CHANNELS = 512


@dataclass(slots=True, eq=False)
class ExpectedPages:
    """One channel that is waited for or under way. `token` opens it once; `received` is of the newest round."""

    token: bytes
    directory: Path
    limit_bytes: int
    received: asyncio.Future[Received]
    spare: SpareRoom | None = None
    receiver: PageReceiver | None = field(default=None)
    cancelled: bool = False
    free: asyncio.Event = field(default_factory=asyncio.Event)  # nobody writes into the directory

    def complete(self, received: Received) -> None:
        """A round has come: it stands for the one before, too."""
        if not self.cancelled:
            self._next().set_result(received)

    def fail(self, error: TransferError) -> None:
        """The channel broke, or nobody will come: what was complete before is of no use without the rest."""
        future = self._next()
        future.set_exception(error)
        future.exception()  # the source may have gone and nobody asks

    def forget(self) -> None:
        """Nothing more is expected. Let go of what was received; a large heap is a hundred thousand runs."""
        self._stop()
        self.received = asyncio.get_running_loop().create_future()
        self.received.cancel()

    def cancel(self) -> None:
        """Stop waiting; break the channel if it is under way."""
        self._stop()
        self.fail(TransferError("the migration was aborted"))

    async def stopped(self) -> None:
        """Forget what has come, and wait until no more of it is written: the source begins anew."""
        self._stop()
        await self.free.wait()
        await asyncio.to_thread(forget_rounds, self.directory)

    def take_spare(self) -> SpareRoom | None:
        """Hand it over."""
        spare, self.spare = self.spare, None
        return spare

    def _stop(self) -> None:
        self.cancelled = True
        if (spare := self.take_spare()) is not None:
            spare.close()
        self.token = b""
        if self.receiver is not None:
            self.receiver.abort()
            self.receiver = None

    def _next(self) -> asyncio.Future[Received]:
        if self.received.done():
            self.received = asyncio.get_running_loop().create_future()
        return self.received


class ReceivedFiles:
    """`migration.arrivals.PageReader` on what `PageListener` has received."""

    async def hashed(self, received: ReceivedPages, pending: Sequence[PageImage]) -> tuple[HashedImage, ...]:
        """Hash it, in a thread."""
        assert isinstance(received, Received)
        return await asyncio.to_thread(page_digests.hashed, received, pending, page_size_bytes())

    async def content(self, received: ReceivedPages, name: str, runs: Runs) -> bytes:
        """Read a block, in a thread."""
        assert isinstance(received, Received)
        return await asyncio.to_thread(page_digests.content, received, name, runs, page_size_bytes())


class PageListener:
    """A listening TCP socket and the channels it serves. Owns both until `close`.

    Args:
        sealed: the channels are encrypted, with keys made of their tokens.
    """

    def __init__(self, page_size_bytes: int, encode_pagemap: PagemapEncoder, *, sealed: bool = False) -> None:
        self.sealed = sealed
        self._page_size_bytes = page_size_bytes
        self._encode_pagemap = encode_pagemap
        self._listener: socket.socket | None = None
        self._expected: list[ExpectedPages] = []  # that nobody has come for yet
        self._under_way: set[ExpectedPages] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers = Strangers()
        self._seldom = Seldom()
        # A channel keeps its thread as long as it is open, so these must not be the few that everybody else uses.
        self._threads = ThreadPoolExecutor(MOST_CHANNELS, thread_name_prefix="pages")

    @property
    def port(self) -> int:
        """The port in use, also where 0 was asked for."""
        assert self._listener is not None
        return int(self._listener.getsockname()[1])

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError where the port is taken or the address not local."""
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        self._listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            self._listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._listener.bind(address)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self._start(self._accept())

    async def close(self) -> None:
        """Stop listening and break every channel."""
        for expected in [*self._expected, *self._under_way]:
            expected.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False)
        if self._listener is not None:
            self._listener.close()

    def expect(self, directory: Path, limit_bytes: int, expected_bytes: int = 0) -> ExpectedPages:
        """Wait for one channel whose pages go into `directory`; its future gives the bytes received, or raises."""
        received: asyncio.Future[Received] = asyncio.get_running_loop().create_future()
        expected = ExpectedPages(secrets.token_bytes(TOKEN_BYTES), directory, limit_bytes, received)
        if expected_bytes:
            expected.spare = SpareRoom(directory, expected_bytes)
        expected.free.set()
        self._expected = [each for each in self._expected if not each.cancelled]
        self._expected.append(expected)
        return expected

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        while True:
            try:
                connection, address = await loop.sock_accept(self._listener)
            except OSError as error:  # one connection, or the agent out of descriptors for a while
                log.warning("page_channel.not_accepted", reason=error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            self._start(self._serve(connection, str(address[0])))
            await asyncio.sleep(0)  # sock_accept gives no turn to others while there are more, and some have to go

    async def _serve(self, connection: socket.socket, peer: str) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            connection.setblocking(False)
            self._strangers.add(connection, peer, lambda: _break(connection))
            try:
                admitted = await self._admit(connection, peer)
            finally:
                self._strangers.discard(connection)
            if admitted is None or admitted[0].cancelled:  # cancelled: aborted as it came
                return
            expected, wire = admitted
            connection.setblocking(True)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            store = PageStore(
                expected.directory,
                self._page_size_bytes,
                expected.limit_bytes,
                self._encode_pagemap,
                expected.take_spare(),
            )
            loop = asyncio.get_running_loop()
            stream = PageStream(wire)

            def on_round(received: Received) -> None:
                stream.end_dump()
                loop.call_soon_threadsafe(expected.complete, received)

            self._under_way.add(expected)
            expected.free.clear()
            receiver = expected.receiver = PageReceiver(stream, store, self._page_size_bytes, on_round)
            stack.pop_all()  # the receiver owns the connection now
            try:
                await loop.run_in_executor(self._threads, receiver.receive)
            except TransferError as error:
                if not expected.cancelled:
                    log.info("page_channel.broke", peer=peer, reason=error.message)
                    expected.fail(error)
            except Exception as error:  # what a hostile or broken peer brought about must not look like silence
                log.exception("page_channel.defect", peer=peer)
                expected.fail(TransferError(f"the page receiver failed: {type(error).__name__}: {error}"))
            finally:
                expected.receiver = None
                expected.free.set()
                self._under_way.discard(expected)

    async def _admit(self, connection: socket.socket, peer: str) -> tuple[ExpectedPages, Wire] | None:
        loop = asyncio.get_running_loop()
        token = b""
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT_SECONDS):
                while len(token) < TOKEN_BYTES:
                    data = await loop.sock_recv(connection, TOKEN_BYTES - len(token))
                    if not data:
                        return None
                    token += data
                for expected in self._expected:
                    secret = expected.token
                    shown = channel_name(secret) if self.sealed else secret
                    if secret and hmac.compare_digest(shown, token):
                        expected.token = b""  # once
                        self._expected.remove(expected)
                        wire = SealedWire(connection, secret, Side.DESTINATION) if self.sealed else Wire(connection)
                        await wire.send(ACCEPTED)
                        return expected, wire
        except (OSError, TimeoutError):
            pass  # the same as a wrong token: it is not let in
        if times := self._seldom.times(peer):
            log.warning("page_channel.refused", peer=peer, times=times)
        return None

    def _start(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _break(connection: socket.socket) -> None:
    """Whoever reads from it comes to its end."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is at its end
