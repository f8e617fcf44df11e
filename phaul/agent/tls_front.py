"""The port for other agents, with TLS before gRPC: looks at who calls, then hands the connection to gRPC's Unix socket.

Owned by `agent.server`. Also answers hosts that want their certificate renewed, where the authority is on this host.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections import Counter
from pathlib import Path

import structlog

from phaul.agent.audit import Audit
from phaul.agent.strangers import Strangers
from phaul.agent.tls_bridge import LiveConnections, carry
from phaul.errors import PhaulError, UnreachableError
from phaul.observe.seldom import Seldom
from phaul.trust.authority import Authority
from phaul.trust.certificates import plain_address
from phaul.trust.connections import CALLS, RENEWAL, TrustedConnection, receive
from phaul.trust.store import TrustStore
from phaul.trust.tls_stream import CHUNK_BYTES

log = structlog.get_logger(__name__)

BACKLOG = 1024  # in the kernel: where it is full, who connects waits for a second
AT_A_TIME = 64  # accepted in one turn of the loop
CONNECTIONS = 512  # of all kinds
CONNECTIONS_A_HOST = 128  # of one address, strangers or not


class TlsFront:
    """Listening sockets and what came in over them. Owns all until `close`."""

    def __init__(self, store: TrustStore, live: LiveConnections, grpc_socket: Path, audit: Audit) -> None:
        self._audit = audit
        self._store = store
        self._live = live
        self._grpc_socket = grpc_socket
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers = Strangers()
        self._of_host: Counter[str] = Counter()
        self._seldom = Seldom()
        self._numbers = itertools.count(1)

    async def start(self, host: str, port: int) -> int:
        """Listen on every address of `host`; gives the port. Raises OSError where it is taken or not local."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                listener.bind((address[0], port, *address[2:]))
            except OSError:
                listener.close()
                raise
            port = int(listener.getsockname()[1])
            self._servers.append(
                await asyncio.start_server(self._accepted, sock=listener, backlog=AT_A_TIME, limit=CHUNK_BYTES)
            )
            listener.listen(BACKLOG)  # asyncio knows one number for both
        return port

    async def close(self) -> None:
        """Stop listening and break every connection."""
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = writer.get_extra_info("peername")
        if found is None:  # gone already
            writer.transport.abort()
            return
        host = str(found[0])
        if len(self._tasks) >= CONNECTIONS or self._of_host[host] >= CONNECTIONS_A_HOST:
            writer.transport.abort()
            if times := self._seldom.times(host):
                log.warning("peer.too_many", peer=host, open=len(self._tasks), times=times)
            return
        self._strangers.add(writer, host, writer.transport.abort)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        self._of_host[host] += 1
        task.add_done_callback(lambda _: self._ended(task, writer, host))

    def _ended(self, task: asyncio.Task[None], writer: asyncio.StreamWriter, host: str) -> None:
        writer.transport.abort()  # a task that was cancelled before its first step has closed nothing
        self._strangers.discard(writer)
        self._tasks.discard(task)
        self._of_host[host] -= 1
        if not self._of_host[host]:
            del self._of_host[host]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("peername")
        try:
            connection = await receive(self._store, reader, writer)
        except PhaulError as error:
            level = log.info if isinstance(error, UnreachableError) else log.warning
            if times := self._seldom.times(f"{address[0]} {error.message}"):
                level("peer.refused", peer=str(address[0]), reason=error.message, detail=error.detail, times=times)
            if not isinstance(error, UnreachableError):
                self._audit.note_repeated("connection", str(address[0]), "refused", reason=error.message)
            return
        finally:
            self._strangers.discard(writer)
        if connection.wants == CALLS:
            await self._hand_to_grpc(connection, str(address[0]), int(address[1]))
        elif connection.wants == RENEWAL:
            await self._renew(connection)
        else:
            await connection.stream.close()

    async def _hand_to_grpc(self, connection: TrustedConnection, host: str, port: int) -> None:
        # gRPC shows the name of the calling end to its services as `context.peer()`: here the address of the peer, in
        # gRPC's own spelling, and a number that makes it unique.
        host = plain_address(host)
        shown = f"[{host}]" if ":" in host else host
        name = f"{shown}:{port}.{next(self._numbers)}"
        calling = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            calling.setblocking(False)
            calling.bind(f"\0{name}")
            await asyncio.get_running_loop().sock_connect(calling, str(self._grpc_socket))
            reader, writer = await asyncio.open_unix_connection(sock=calling, limit=CHUNK_BYTES)
        except OSError as error:
            calling.close()
            connection.stream.abort()
            log.error("peer.not_served", peer=host, reason=str(error))
            return
        self._live.add(name, connection)
        log.debug("peer.connected", peer=host, names=str(connection.names))
        try:
            await carry(connection, reader, writer)
        finally:
            self._live.discard(name)

    async def _renew(self, connection: TrustedConnection) -> None:
        authority = Authority(self._store)
        try:
            chain = await asyncio.to_thread(authority.renew, connection.names, connection.request)
            answer = {"chain": chain}
            log.info("trust.renewed_for", host=str(connection.names))
            self._audit.note("trust.renewed", str(connection.names), "done")
        except PhaulError as error:
            answer = {"error": error.message}
            log.warning("trust.not_renewed_for", host=str(connection.names), reason=error.message)
            self._audit.note_repeated("trust.renewed", str(connection.names), "refused", reason=error.message)
        try:
            await connection.stream.write(json.dumps(answer).encode() + b"\n")
        except OSError:
            pass  # it asks again
        await connection.stream.close()
