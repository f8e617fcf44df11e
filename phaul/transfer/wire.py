"""The TCP connection that memory travels over, as it is or sealed; for both ends of the page channel.

A sealed wire carries records: four bytes of length, and that many bytes of AES-256-GCM, of which the last 16 are the
tag. The keys, one for each direction, come from the token of the channel, which the destination gave to the source over
TLS and which opens one connection only; so a record's number in its direction is all that a nonce has to be. That makes
a record that was changed, left out, repeated or put elsewhere an error. docs/design/0009-trust.md has the argument.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import Enum
from types import TracebackType
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from phaul.errors import TransferError
from phaul.system.task_memory import own_pages
from phaul.units import MIB

RECORD_BYTES = 1 * MIB  # of content, at most; a quarter of it costs a fifth of the rate
RECORD_HEADER = struct.Struct("<I")  # bytes that follow
TAG_BYTES = 16
KEY_BYTES = 32
NONCE = struct.Struct(">IQ")  # 0, and the record's number
MOST_RECORDS = 1 << 32  # 2^32 * 1 MiB is far within what AES-GCM is good for with counted nonces (SP 800-38D)
LABEL = b"phaul pages 1 "


class Side(bytes, Enum):
    """Who sends with a key."""

    SOURCE = b"source"
    DESTINATION = b"destination"


class Wire:
    """A connection as it is. Owns the socket."""

    sealed = False

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def fileno(self) -> int:
        """Its descriptor."""
        return self.socket.fileno()

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Send all of it; the socket must be blocking."""
        self.socket.sendall(data)

    def recv_into(self, buffer: memoryview, *, flags: int = 0) -> int:
        """Receive at least a byte, with MSG_WAITALL rather all, 0 at the end.

        The socket must be blocking. `TransferError` for a bad record.
        """
        return self.socket.recv_into(buffer, flags=flags)

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of it; the socket must not be blocking."""
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def recv(self, most: int) -> bytes:
        """Receive 1 to `most` bytes, b"" at the end; the socket must not be blocking."""
        return await asyncio.get_running_loop().sock_recv(self.socket, most)

    def dup(self) -> Wire:
        """The same wire through a descriptor of its own. Only one of the two may be used at a time."""
        return Wire(self.socket.dup())

    def shutdown(self, how: int, /) -> None:
        """Break the connection, or half of it."""
        self.socket.shutdown(how)

    def close(self) -> None:
        """Give the descriptor back."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SealedWire(Wire):
    """A connection that carries records. Owns the socket.

    Args:
        token: what both ends know, 32 random bytes; used for this one connection and never again.
        side: which end this is.
    """

    sealed = True

    def __init__(self, connection: socket.socket, token: bytes, side: Side) -> None:
        super().__init__(connection)
        other = Side.DESTINATION if side is Side.SOURCE else Side.SOURCE
        self._sealer, self._opener = Sealer(token, side), Sealer(token, other)
        self._ready = memoryview(b"")  # content of a record that was not asked for yet

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Seal and send it, record by record."""
        content = memoryview(data)
        while content:
            self.socket.sendall(self._sealer.seal(content[:RECORD_BYTES]))
            content = content[RECORD_BYTES:]

    def recv_into(self, buffer: memoryview, *, flags: int = 0) -> int:
        """Content of one record, or of what is left of it, whatever the flags."""
        if self._ready:
            return self._hand_out(buffer)
        sealed = self._opener.room
        if not self._fill(sealed[: RECORD_HEADER.size]):
            return 0
        size = self._opener.size_of(sealed[: RECORD_HEADER.size])
        if not self._fill(sealed[RECORD_HEADER.size : RECORD_HEADER.size + size]):
            return 0
        content = size - TAG_BYTES
        if len(buffer) >= content:
            self._opener.open(size, buffer[:content])
            return content
        self._ready = self._opener.opened(size)
        return self._hand_out(buffer)

    async def send(self, data: bytes | memoryview) -> None:
        """Seal and send it, beside other work."""
        content = memoryview(data)
        while content:
            await super().send(self._sealer.seal(content[:RECORD_BYTES]))
            content = content[RECORD_BYTES:]

    async def recv(self, most: int) -> bytes:
        """Content of one record, beside other work."""
        if not self._ready:
            sealed = self._opener.room
            if not await self._fill_beside(sealed[: RECORD_HEADER.size]):
                return b""
            size = self._opener.size_of(sealed[: RECORD_HEADER.size])
            if not await self._fill_beside(sealed[RECORD_HEADER.size : RECORD_HEADER.size + size]):
                return b""
            self._ready = self._opener.opened(size)
        found = bytes(self._ready[:most])
        self._ready = self._ready[most:]
        return found

    def dup(self) -> SealedWire:
        """It goes on with the numbers of this one."""
        twin = object.__new__(SealedWire)
        Wire.__init__(twin, self.socket.dup())
        twin._sealer, twin._opener, twin._ready = self._sealer, self._opener, self._ready
        return twin

    def close(self) -> None:
        """Give the descriptor and what was not asked for back."""
        self._ready = memoryview(b"")
        super().close()

    def _hand_out(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _fill(self, part: memoryview) -> bool:
        """Receive exactly this part; False where the connection ends before."""
        filled = 0
        while filled < len(part):
            received = self.socket.recv_into(part[filled:], flags=socket.MSG_WAITALL)
            if not received:
                return False
            filled += received
        return True

    async def _fill_beside(self, part: memoryview) -> bool:
        filled = 0
        while filled < len(part):
            received = await asyncio.get_running_loop().sock_recv_into(self.socket, part[filled:])
            if not received:
                return False
            filled += received
        return True


class Sealer:
    """One direction: its key, the number of the next record, and room for one record. For one thread at a time."""

    def __init__(self, token: bytes, sender: Side) -> None:
        self._key = AESGCM(_derive(token, LABEL + sender.value))
        self._number = 0
        self.room = own_pages(RECORD_HEADER.size + RECORD_BYTES + TAG_BYTES)

    def seal(self, content: memoryview) -> memoryview:
        """Give the record of 1 to RECORD_BYTES bytes; it is good until the next one is sealed."""
        header = RECORD_HEADER.pack(len(content) + TAG_BYTES)
        end = RECORD_HEADER.size + len(content) + TAG_BYTES
        self.room[: RECORD_HEADER.size] = header
        self._key.encrypt_into(self._nonce(), content, header, self.room[RECORD_HEADER.size : end])
        return self.room[:end]

    def size_of(self, header: memoryview) -> int:
        """How many bytes follow. `TransferError` for what nobody seals."""
        (size,) = RECORD_HEADER.unpack(header)
        if not TAG_BYTES < size <= RECORD_BYTES + TAG_BYTES:
            raise TransferError(f"the page channel brought a sealed record of {size} bytes")
        return int(size)

    def open(self, size: int, content: memoryview) -> None:
        """Open the record of `size` bytes that stands in `room` into `content`, which is 16 bytes shorter."""
        header = bytes(self.room[: RECORD_HEADER.size])
        sealed = self.room[RECORD_HEADER.size : RECORD_HEADER.size + size]
        try:
            self._key.decrypt_into(self._nonce(), sealed, header, content)
        except InvalidTag as error:
            raise TransferError(
                "what came over the page channel was changed on its way, or is not from who has its token"
            ) from error

    def opened(self, size: int) -> memoryview:
        """The same, into memory of its own."""
        content = memoryview(bytearray(size - TAG_BYTES))
        self.open(size, content)
        return content

    def _nonce(self) -> bytes:
        if self._number >= MOST_RECORDS:
            raise TransferError("the page channel has carried as much as one key may seal")
        nonce = NONCE.pack(0, self._number)
        self._number += 1
        return nonce


def channel_name(token: bytes) -> bytes:
    """What opens a sealed channel in place of the token, which is the secret: as long, and says nothing of it."""
    return _derive(token, LABEL + b"name")


def _derive(token: bytes, label: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=label).derive(token)
