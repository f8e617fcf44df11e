"""The socket for people on this host: looks at who connects, then hands the connection to gRPC's Unix socket.

Owned by `agent.server`. gRPC for Python cannot say who is at the other end of a Unix socket (1.85). As `tls_front` does
for other hosts, this stands before a socket that is root's alone, and names each connection so that the services know
it again (`context.peer()`).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import structlog

from phaul.agent.peer_names import socket_name
from phaul.errors import UsageError
from phaul.migration.policy import Person
from phaul.system import activation, credentials
from phaul.system.credentials import Credentials

log = structlog.get_logger(__name__)

BACKLOG = 64
CHUNK_BYTES = 64 * 1024
CONNECTIONS = 512
CONNECTIONS_A_USER = 32  # of those who are not root
GOODBYE_SECONDS = 1.0
FOR_ROOT, FOR_ALL = 0o600, 0o666
PASSABLE = 0o011  # of the socket's directory: whoever may use the socket must get there


class LocalFront:
    """A listening Unix socket and what came in over it. Owns all until `close`."""

    def __init__(self, path: Path, grpc_socket: Path) -> None:
        self._path = path
        self._grpc_socket = grpc_socket
        self._server: asyncio.Server | None = None
        self._own = True  # and no service manager's
        self._people: dict[str, Person] = {}
        self._of_user: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, for root alone, or go on where a service manager has listened meanwhile. Raises `UsageError`."""
        listener = activation.handed_over(self._path)
        self._own = listener is None
        if listener is None:
            listener = self._listen()
        # From 3.13 on asyncio removes the socket with its server: also one that is a service manager's.
        keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await asyncio.start_unix_server(
            self._accepted, sock=listener, backlog=BACKLOG, limit=CHUNK_BYTES, **keep
        )

    def _listen(self) -> socket.socket:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        mask = os.umask(0o777 & ~FOR_ROOT)
        try:
            listener.bind(str(self._path))
        except OSError as error:
            listener.close()
            raise UsageError(
                f"the agent cannot listen on the socket {self._path}", detail=error.strerror or str(error)
            ) from error
        finally:
            os.umask(mask)
        return listener

    def open_to_all(self, wanted: bool) -> None:
        """Let every user connect, to be looked at then; or root alone."""
        directory = self._path.parent
        mode = directory.stat().st_mode & 0o7777
        try:
            if wanted and mode & PASSABLE != PASSABLE:
                directory.chmod(mode | PASSABLE)
            self._path.chmod(FOR_ALL if wanted else FOR_ROOT)
        except OSError as error:
            log.error("agent.socket_mode", path=str(self._path), reason=error.strerror)

    def person(self, peer: str) -> Person | None:
        """Who a call came from, by gRPC's name for the other end."""
        return self._people.get(socket_name(peer))

    async def close(self) -> None:
        """Stop listening, break every connection, remove the socket."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._own:
            self._path.unlink(missing_ok=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            who = credentials.of_peer(writer.get_extra_info("socket"))
        except OSError:
            writer.transport.abort()
            return
        if len(self._tasks) >= CONNECTIONS or (not who.may_all and self._of_user[who.user_id] >= CONNECTIONS_A_USER):
            log.warning("person.too_many", user_id=who.user_id, open=len(self._tasks))
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(who, reader, writer))
        self._tasks.add(task)
        self._of_user[who.user_id] += 1
        task.add_done_callback(lambda _: self._ended(task, writer, who.user_id))

    def _ended(self, task: asyncio.Task[None], writer: asyncio.StreamWriter, user_id: int) -> None:
        writer.transport.abort()  # a task that was cancelled before its first step has closed nothing
        self._tasks.discard(task)
        self._of_user[user_id] -= 1
        if not self._of_user[user_id]:
            del self._of_user[user_id]

    async def _serve(self, who: Credentials, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = f"phaul-person-{secrets.token_hex(8)}"
        calling = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._people[name] = await asyncio.to_thread(person_of, who)  # the user database may be far away
            calling.setblocking(False)
            calling.bind(f"\0{name}")
            await asyncio.get_running_loop().sock_connect(calling, str(self._grpc_socket))
            inner_reader, inner_writer = await asyncio.open_unix_connection(sock=calling, limit=CHUNK_BYTES)
            await _carry(reader, writer, inner_reader, inner_writer)
        except OSError as error:
            log.error("person.not_served", user_id=who.user_id, reason=str(error))
        finally:
            self._people.pop(name, None)
            calling.close()
            await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Let what was written arrive, as far as anybody reads it."""
    writer.close()
    try:
        async with asyncio.timeout(GOODBYE_SECONDS):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()


def person_of(who: Credentials) -> Person:
    """Look up what the user and their groups are called. Blocks."""
    groups = (text for group in who.group_ids for text in (credentials.group_name(group), str(group)) if text)
    return Person(who.user_id, credentials.user_name(who.user_id), tuple(groups), who.may_all)


async def _carry(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    inner_reader: asyncio.StreamReader,
    inner_writer: asyncio.StreamWriter,
) -> None:
    """Carry bytes until one side ends it."""

    async def way(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK_BYTES):
            target.write(data)
            await target.drain()

    ways = [asyncio.create_task(way(reader, inner_writer)), asyncio.create_task(way(inner_reader, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in ways:
            each.cancel()
        inner_writer.close()  # before anything is waited for: the agent may end meanwhile
        await asyncio.gather(*ways, return_exceptions=True)  # ConnectionError: the end, too
