"""Between TLS and gRPC: bytes of a trusted connection go to a Unix socket of gRPC's, and back.

gRPC cannot say why it refused a certificate, cannot be told of a revoked one, and cannot be held to TLS 1.3 from Python
(docs/design/0009-trust.md). So it speaks on Unix sockets only, which are root's, and what is here stands before them.
"""

from __future__ import annotations

import asyncio
import datetime

from phaul.agent.peer_names import socket_name
from phaul.trust.connections import TrustedConnection
from phaul.trust.refusals import Refusal, complaint
from phaul.trust.tls_stream import CHUNK_BYTES
from phaul.trust.trust_list import TrustList


class LiveConnections:
    """The trusted connections of an agent, in either direction, while they are open."""

    def __init__(self) -> None:
        self._open: dict[str, TrustedConnection] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, name: str, connection: TrustedConnection) -> None:
        """It is open from now on; `name` is unique."""
        self._open[name] = connection

    def discard(self, name: str) -> None:
        """It was closed."""
        self._open.pop(name, None)

    def caller(self, peer: str) -> TrustedConnection | None:
        """Who a call came from, by gRPC's name for the other end (`context.peer()`); None without TLS."""
        return self._open.get(socket_name(peer))

    def cut(self, trusted: TrustList, now: datetime.datetime) -> list[tuple[TrustedConnection, Refusal]]:
        """Break off what is no more trusted: certificates revoked or expired since. Give which, and why."""
        found = []
        for name, connection in list(self._open.items()):
            if refusal := complaint(connection.certificate, trusted, "", now):
                connection.stream.abort()
                self.discard(name)
                found.append((connection, refusal))
        return found


async def carry(connection: TrustedConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes between a peer and gRPC until one of them ends it; closes both."""
    stream = connection.stream

    async def inwards() -> None:
        while data := await stream.read():
            writer.write(data)
            await writer.drain()

    async def outwards() -> None:
        while data := await reader.read(CHUNK_BYTES):
            await stream.write(data)

    ways = [asyncio.create_task(inwards()), asyncio.create_task(outwards())]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        broken = any(way.done() and way.exception() for way in ways)
    except BaseException:
        broken = True
        raise
    finally:
        for way in ways:
            way.cancel()
        writer.close()  # before anything is waited for: the agent may end meanwhile
        await asyncio.gather(*ways, return_exceptions=True)  # ConnectionError, ssl.SSLError: the end, too
        if broken:
            stream.abort()
        else:
            await stream.close()
