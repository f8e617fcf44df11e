"""What the kernel knows of a TCP connection (struct tcp_info, linux/tcp.h): how much arrived, and how fast.

Used by `transfer.page_channel` and `transfer.link_probe`.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import termios
from dataclasses import dataclass

SIZE = 256  # more than any kernel's
COUNTER = struct.Struct("=Q")
BYTES_ACKED, DELIVERY_RATE, BUSY_TIME = 120, 160, 168  # since Linux 4.1, 4.9 and 4.10


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """One look at it. All 0 where the connection is closed."""

    acked_bytes: int = 0  # by the other end's kernel
    busy_us: int = 0  # time in which there was something to send, or to be acknowledged
    delivery_bytes_per_second: int = 0  # over the latest round trip


def tcp_info(connection: socket.socket) -> TcpInfo:
    """Ask. Never fails."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SIZE)
    except OSError:
        return TcpInfo()
    return TcpInfo(*(_counter(info, offset) for offset in (BYTES_ACKED, BUSY_TIME, DELIVERY_RATE)))


def unacknowledged_bytes(connection: socket.socket) -> int:
    """Give what was written and has not arrived yet (SIOCOUTQ, tcp(7)). OSError where the connection is closed."""
    count = array.array("i", [0])
    fcntl.ioctl(connection, termios.TIOCOUTQ, count)  # the same number
    return count[0]


def _counter(info: bytes, offset: int) -> int:
    return int(COUNTER.unpack_from(info, offset)[0]) if len(info) >= offset + COUNTER.size else 0
