"""The destination's end of the page channel as `page_receiver` reads it: a connection that gives CRIU's bytes.

Made by `agent.page_listener` around one that was accepted. Before each dump the source says how it comes, compressed or
not, and may send probes, from which it learns how fast the link is; see docs/protocol.md.
"""

from __future__ import annotations

import struct
from enum import Enum

from phaul.errors import TransferError
from phaul.system.task_memory import own_pages
from phaul.transfer.compression import FRAME_BYTES, FRAME_HEADER, frame_content, frame_sizes
from phaul.transfer.wire import Wire
from phaul.units import MIB

PROBE_HEADER = struct.Struct("<I")  # bytes that follow
LARGEST_PROBE_BYTES = 1 * MIB
PROBE_ARRIVED = b"\1"


class Opening(bytes, Enum):
    """What the source sends next, one byte."""

    RAW = b"R"  # a dump as CRIU writes it
    ZSTD = b"Z"  # a dump in frames
    PROBE = b"P"  # PROBE_HEADER and bytes to throw away, answered with PROBE_ARRIVED


class PageStream:
    """Reads like a connected socket, one dump after the other.

    Whoever reads says when a dump is over (`end_dump`): only CRIU's own protocol tells. Owns the connection until
    `close`. For one thread; `shutdown` may be called from another at any time.
    """

    def __init__(self, wire: Wire) -> None:
        self._socket = wire
        self._framed = False
        self._between_dumps = True
        self._buffer = own_pages(FRAME_HEADER.size + FRAME_BYTES)
        self._ready = memoryview(b"")  # content of a frame that was not asked for yet

    def end_dump(self) -> None:
        """The dump was read to its end; what comes next opens another one."""
        self._between_dumps = True
        self._ready = memoryview(b"")

    def recv_into(self, buffer: memoryview, *, flags: int = 0) -> int:
        """Receive at least a byte of a dump, with MSG_WAITALL rather all; 0 at the end of the connection.

        Raises `TransferError` for a source that speaks something else, or a damaged frame, and OSError.
        """
        while self._between_dumps:
            if not self._fill(1):
                return 0
            self._open(bytes(self._buffer[:1]))
        if not self._framed:
            return self._socket.recv_into(buffer, flags=flags)
        if not self._ready:
            self._ready = memoryview(self._frame())
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def sendall(self, data: bytes) -> None:
        """Answer CRIU."""
        self._socket.sendall(data)

    def shutdown(self, how: int) -> None:
        """Break the connection, or half of it."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """Give the connection back."""
        self._ready = self._buffer = memoryview(b"")
        self._socket.close()

    def _frame(self) -> bytes | memoryview:
        """The content of the next frame; nothing at the end of the connection."""
        if not self._fill(FRAME_HEADER.size):
            return b""
        content, packed = frame_sizes(self._buffer[: FRAME_HEADER.size])
        if not self._fill(packed):
            return b""
        return frame_content(self._buffer[:packed], content)

    def _open(self, opening: bytes) -> None:
        match opening:
            case Opening.PROBE.value:
                self._take_probe()
            case Opening.RAW.value | Opening.ZSTD.value:
                self._framed = opening == Opening.ZSTD.value
                self._between_dumps = False
            case _:
                raise TransferError(f"the page channel brought an unknown opening {opening!r}")

    def _take_probe(self) -> None:
        if self._fill(PROBE_HEADER.size):
            (left,) = PROBE_HEADER.unpack(self._buffer[: PROBE_HEADER.size])
            if left > LARGEST_PROBE_BYTES:
                raise TransferError(f"the page channel brought a probe of {left} bytes")
            while left:
                received = self._socket.recv_into(self._buffer[: min(left, len(self._buffer))])
                if not received:
                    return
                left -= received
            self._socket.sendall(PROBE_ARRIVED)

    def _fill(self, count: int) -> bool:
        """Receive exactly `count` bytes into the buffer; False where the connection ends before."""
        filled = 0
        while filled < count:
            received = self._socket.recv_into(self._buffer[filled:count])
            if not received:
                return False
            filled += received
        return True
