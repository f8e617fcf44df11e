"""The source's end of the page channel: a TCP connection that opens with the token the destination gave out.

Used by `agent.peer_client`. CRIU's dump writes into this very socket, so nothing of ours stands between it and the
wire.
"""

from __future__ import annotations

import asyncio
import socket
import struct

from phaul.errors import UnreachableError

TOKEN_BYTES = 32
ACCEPTED = b"\1"
SILENCE_MS = 10_000  # a link that was cut says nothing: data unacknowledged for so long breaks the channel (tcp(7))
CONNECT_TIMEOUT_SECONDS = 10.0
TCP_INFO_BYTES_ACKED_OFFSET = 120  # struct tcp_info.tcpi_bytes_acked, u64 (linux/tcp.h since 4.2)


class TcpPageChannel:
    """`PageChannel` on one TCP socket, which it owns until `close`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def fileno(self) -> int:
        """The descriptor that CRIU is given."""
        return self._socket.fileno()

    def delivered_bytes(self) -> int:
        """What the kernel knows to have arrived; headers and the token count as well."""
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            return 0
        if len(info) < TCP_INFO_BYTES_ACKED_OFFSET + 8:
            return 0
        (acked,) = struct.unpack_from("=Q", info, TCP_INFO_BYTES_ACKED_OFFSET)
        return int(acked)

    def close(self) -> None:
        """Shut down and close, so that also a copy of the descriptor in CRIU's hands is dead."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed or never connected through
        self._socket.close()


async def open_page_channel(host: str, port: int, token: bytes) -> TcpPageChannel:
    """Connect and present the token. Raises `UnreachableError` when that does not succeed in time.

    The socket is blocking when it is returned: CRIU expects one that is (it knows no EAGAIN).
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]
            connection = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
            try:
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
                await loop.sock_connect(connection, address)
                await loop.sock_sendall(connection, token)
                answer = await loop.sock_recv(connection, 1)
            except BaseException:
                connection.close()
                raise
    except (OSError, TimeoutError) as error:
        raise UnreachableError(
            f"the page channel to {host}:{port} could not be opened: {str(error) or 'no answer'}",
            hint="The destination's page port must be reachable from here, as its agent's port is; look at firewalls.",
        ) from error
    if answer != ACCEPTED:
        connection.close()
        raise UnreachableError(f"{host}:{port} refused the page channel")
    connection.setblocking(True)
    return TcpPageChannel(connection)
