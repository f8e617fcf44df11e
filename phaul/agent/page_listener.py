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
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from phaul.errors import TransferError
from phaul.transfer.page_channel import ACCEPTED, TOKEN_BYTES
from phaul.transfer.page_receiver import PagemapEncoder, PageReceiver, Received

log = structlog.get_logger(__name__)

TOKEN_TIMEOUT_SECONDS = 10.0
ACCEPT_PAUSE_SECONDS = 0.1  # after a connection that could not be accepted
BACKLOG = 64


@dataclass(slots=True, eq=False)
class ExpectedPages:
    """One channel that is waited for or under way. `token` opens it once."""

    token: bytes
    directory: Path
    limit_bytes: int
    received: asyncio.Future[Received]
    receiver: PageReceiver | None = field(default=None)

    def forget(self) -> None:
        """Let go of what was received; a large heap is a hundred thousand runs."""
        self.received = asyncio.get_running_loop().create_future()
        self.received.cancel()
        self.receiver = None

    def cancel(self) -> None:
        """Stop waiting; break the channel if it is under way."""
        if self.receiver is not None:
            self.receiver.abort()
        if not self.received.done():
            self.received.set_exception(TransferError("the migration was aborted"))
            self.received.exception()  # nobody may be left who asks


class PageListener:
    """A listening TCP socket and the channels it serves. Owns both until `close`."""

    def __init__(self, page_size_bytes: int, encode_pagemap: PagemapEncoder) -> None:
        self._page_size_bytes = page_size_bytes
        self._encode_pagemap = encode_pagemap
        self._listener: socket.socket | None = None
        self._expected: list[ExpectedPages] = []
        self._tasks: set[asyncio.Task[None]] = set()

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
        for expected in list(self._expected):
            expected.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    def expect(self, directory: Path, limit_bytes: int) -> ExpectedPages:
        """Wait for one channel whose pages go into `directory`; its future gives the bytes received, or raises."""
        expected = ExpectedPages(
            secrets.token_bytes(TOKEN_BYTES), directory, limit_bytes, asyncio.get_running_loop().create_future()
        )
        self._expected.append(expected)
        expected.received.add_done_callback(lambda _: self._forget(expected))
        return expected

    def _forget(self, expected: ExpectedPages) -> None:
        if expected in self._expected:
            self._expected.remove(expected)

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

    async def _serve(self, connection: socket.socket, peer: str) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            connection.setblocking(False)
            expected = await self._admit(connection, peer)
            if expected is None or expected.received.done():  # done: aborted as it came
                return
            connection.setblocking(True)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            receiver = PageReceiver(
                connection, expected.directory, self._page_size_bytes, expected.limit_bytes, self._encode_pagemap
            )
            stack.pop_all()  # the receiver owns the connection now
            expected.receiver = receiver
            try:
                received = await asyncio.to_thread(receiver.receive)
            except TransferError as error:
                log.info("page_channel.broke", peer=peer, reason=error.message)
                if not expected.received.done():
                    expected.received.set_exception(error)
                    expected.received.exception()  # the source may have gone and nobody asks
            else:
                if not expected.received.done():
                    expected.received.set_result(received)

    async def _admit(self, connection: socket.socket, peer: str) -> ExpectedPages | None:
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
                    if expected.receiver is None and expected.token and hmac.compare_digest(expected.token, token):
                        expected.token = b""  # once
                        await loop.sock_sendall(connection, ACCEPTED)
                        return expected
        except (OSError, TimeoutError):
            pass  # the same as a wrong token: it is not let in
        log.warning("page_channel.refused", peer=peer)
        return None

    def _start(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
