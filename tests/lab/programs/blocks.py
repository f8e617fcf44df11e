"""Numbered blocks for both directions of a TCP connection: any byte lost, doubled or changed is found by the reader.

Used by `server.py` on a host and `numbering.py` on the client.
"""

from __future__ import annotations

import hashlib
import struct
import zlib

HEADER = struct.Struct(">QQ")  # the block's number, from 1; how many blocks of the other direction were verified
CHECK = struct.Struct(">I")
BLOCK_BYTES = 512
FILLER_BYTES = BLOCK_BYTES - HEADER.size - CHECK.size


class BrokenStreamError(Exception):
    """The bytes are not those that were sent."""


class Blocks:
    """One end of a connection. `name` tells the two directions apart."""

    def __init__(self, own: str, other: str) -> None:
        self._own = own
        self._other = other
        self._rest = b""
        self.sent = 0
        self.verified = 0
        self.acknowledged = 0

    def next(self) -> bytes:
        """Make the next block to send."""
        self.sent += 1
        head = HEADER.pack(self.sent, self.verified) + _filler(self._own, self.sent)
        return head + CHECK.pack(zlib.crc32(head))

    def feed(self, data: bytes) -> int:
        """Take in what was received; give how many blocks it completed. Raises `BrokenStreamError`."""
        self._rest += data
        whole = len(self._rest) // BLOCK_BYTES
        for index in range(whole):
            self._verify(self._rest[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
        self._rest = self._rest[whole * BLOCK_BYTES :]
        return whole

    def _verify(self, block: bytes) -> None:
        number, acknowledged = HEADER.unpack_from(block)
        expected = self.verified + 1
        head = block[: -CHECK.size]
        if number != expected or head[HEADER.size :] != _filler(self._other, expected):
            raise BrokenStreamError(f"block {expected} of {self._other} looks like {number}: {block[:24].hex()}")
        if CHECK.unpack(block[-CHECK.size :])[0] != zlib.crc32(head):
            raise BrokenStreamError(f"block {expected} of {self._other} has another check sum")
        if acknowledged < self.acknowledged:
            raise BrokenStreamError(f"{self._other} went back from {self.acknowledged} to {acknowledged}")
        self.verified = expected
        self.acknowledged = acknowledged


def _filler(name: str, number: int) -> bytes:
    digest = hashlib.sha256(f"{name}:{number}".encode()).digest()
    return (digest * (FILLER_BYTES // len(digest) + 1))[:FILLER_BYTES]
