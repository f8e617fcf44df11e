"""The way to another agent: a Unix socket that gRPC connects to, and TLS from there to the peer.

Made by `agent.wiring` for each peer, owned by its `GrpcPeer`. What kept a connection from being made stands in
`failure`, since gRPC would only say that a socket was closed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from phaul.agent.tls_bridge import LiveConnections, carry
from phaul.errors import PhaulError
from phaul.trust.connections import CALLS, TrustedConnection, dial
from phaul.trust.store import TrustStore
from phaul.trust.tls_stream import CHUNK_BYTES

BACKLOG = 8
PREFIX = "to-"  # of the sockets' names


class TlsTunnel:
    """A listening Unix socket, root's alone, each of whose connections goes to one peer. Needs a running loop.

    Args:
        why_not: says why a host with these names and addresses may not be spoken to; asked before the first byte goes
            there, and not again once it may: what was begun must not be cut off by a new policy.

    Attributes:
        failure: why the last attempt came to nothing; None while a connection stands, or before the first.
    """

    def __init__(
        self,
        store: TrustStore,
        live: LiveConnections,
        host: str,
        port: int,
        directory: Path,
        why_not: Callable[[Sequence[str]], PhaulError | None],
    ) -> None:
        self._why_not = why_not
        self._store, self._live = store, live
        self._host, self._port = host, port
        self.failure: PhaulError | None = None
        self._path = directory / f"{PREFIX}{secrets.token_hex(4)}"
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(self._path))
        finally:
            os.umask(mask)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    @property
    def target(self) -> str:
        """What gRPC connects to."""
        return f"unix:{self._path}"

    async def close(self) -> None:
        """Break every connection, and remove the socket."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        await asyncio.sleep(0)  # each task takes its first step, and will close what it was given
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        # Not asyncio's servers: what comes in while one is being closed, as gRPC does again and again, they leave open.
        try:
            accepted, _ = self._listener.accept()
        except OSError:  # gone again, or the agent is out of descriptors
            return
        task = asyncio.get_running_loop().create_task(self._serve(accepted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, accepted: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(sock=accepted, limit=CHUNK_BYTES)
        except BaseException:
            accepted.close()
            raise
        try:
            connection = await self._dial()
        except PhaulError as error:
            self.failure = error
            writer.transport.abort()
            return
        except BaseException:
            writer.transport.abort()
            raise
        self.failure = None
        name = f"to {self._path.name} {id(connection)}"
        self._live.add(name, connection)
        try:
            await carry(connection, reader, writer)
        finally:
            self._live.discard(name)

    async def _dial(self) -> TrustedConnection:
        connection = await dial(self._store, self._host, self._port, CALLS)
        names = connection.names
        if failure := self._why_not((*names.hosts, *names.addresses)):
            await connection.stream.close()
            raise failure
        self._why_not = anyone
        return connection


def anyone(names: Sequence[str]) -> None:
    """Every host may be spoken to."""


def remove_leftovers(directory: Path) -> None:
    """Remove the sockets of an agent before this one, which was killed. Before the first tunnel is made."""
    for path in directory.glob(f"{PREFIX}*"):
        path.unlink(missing_ok=True)
