"""One conversation with `criu swrk`: a child process and the SEQPACKET socket on which it takes one request.

Used by `criu.gates` and `criu.features`. CRIU sends NOTIFY messages at its action script stages and waits for an answer
to each; a refused one makes it roll back. This module carries messages and looks after the child; it decides nothing.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Sequence
from subprocess import DEVNULL
from types import TracebackType
from typing import Any, Self

import structlog
from google.protobuf.message import DecodeError

from phaul.errors import DefectError, PhaulError
from phaul.rpc.criu import rpc_pb2
from phaul.system import children, placement

log = structlog.get_logger(__name__)

EXIT_GRACE_SECONDS = 10.0  # after its socket is closed CRIU thaws or kills what it holds; then it must end


class CriuMissingError(PhaulError):
    """There is no CRIU on this host that could be started."""

    exit_status = 10
    default_hint = "Install CRIU (Debian: `apt-get install criu`); `phaul doctor` says which version this kernel needs."


class CriuGoneError(PhaulError):
    """CRIU ended, or was ended, in the middle of a conversation."""


class CriuSession:
    """A `criu swrk` child.

    Owns the child process and the socket. Closing the socket before a gate was passed makes CRIU roll back by itself
    (a dump thaws the tree, a restore kills the copy; seen with CRIU 4.1 and 4.2), so a crash of ours does the same.
    """

    def __init__(self, child: asyncio.subprocess.Process, connection: socket.socket) -> None:
        self._child = child
        self._socket = connection
        self._ended = asyncio.create_task(child.wait())

    @classmethod
    async def start(cls, criu: str, *, inherited_fds: Sequence[int] = ()) -> Self:
        """Start CRIU. `inherited_fds` keep their numbers in the child, so a request may name them."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            with children.starting() as started:
                child = await asyncio.create_subprocess_exec(
                    *placement.command([criu, "swrk", str(theirs.fileno())]),
                    stdin=DEVNULL,
                    stdout=DEVNULL,
                    stderr=DEVNULL,
                    pass_fds=(theirs.fileno(), *inherited_fds),
                    start_new_session=True,
                )
                started.pid = child.pid
        except OSError as error:
            ours.close()
            raise CriuMissingError(f"`{criu}` could not be started: {error.strerror}") from error
        finally:
            theirs.close()
        log.debug("criu.started", pid=child.pid)
        return cls(child, ours)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def pid(self) -> int:
        """The PID of the CRIU process."""
        return self._child.pid

    async def send(self, request: rpc_pb2.Request) -> None:
        """Send one request. Raises `CriuGoneError` where nobody is left to read it."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, request.SerializeToString())
        except OSError as error:
            raise CriuGoneError(f"CRIU (PID {self.pid}) ended before it could be asked") from error

    async def answer(self, *, success: bool) -> None:
        """Answer the NOTIFY that was received last."""
        await self.send(rpc_pb2.Request(type=rpc_pb2.NOTIFY, notify_success=success))

    async def receive(self) -> rpc_pb2.Response:
        """Wait for the next message. Raises `CriuGoneError` when CRIU ends instead."""
        while True:
            await self._readable()
            try:
                # A message larger than the buffer would be cut without a word, so its size is asked first.
                size = self._socket.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
                data = self._socket.recv(max(size, 1))
            except BlockingIOError:
                continue
            except OSError as error:
                raise CriuGoneError(f"the connection to CRIU (PID {self.pid}) broke: {error.strerror}") from error
            if not data:
                raise CriuGoneError(f"CRIU (PID {self.pid}) ended without an answer")
            try:
                return rpc_pb2.Response.FromString(data)
            except DecodeError as error:
                raise DefectError("CRIU sent a message that is not of its RPC") from error

    async def request(self, request: rpc_pb2.Request) -> rpc_pb2.Response:
        """Send a request that has one reply and no gates."""
        await self.send(request)
        return await self.receive()

    async def close(self) -> None:
        """Close the socket and wait for CRIU to end; a CRIU that does not is killed."""
        self._socket.close()
        try:
            async with asyncio.timeout(EXIT_GRACE_SECONDS):
                await asyncio.shield(self._ended)
        except TimeoutError:
            log.warning("criu.killed", pid=self.pid, grace_seconds=EXIT_GRACE_SECONDS)
            self._child.kill()
            await self._ended
        children.ended(self.pid)

    async def _readable(self) -> None:
        """Wait for a message, or for the end of CRIU: a helper that it has forked may hold the socket open for good."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._socket, _resolve, ready)
        try:
            either: list[asyncio.Future[Any]] = [ready, self._ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(self._socket)
        if not ready.done() and not _is_readable(self._socket):
            raise CriuGoneError(f"CRIU (PID {self.pid}) ended without an answer")


def _is_readable(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
