"""The images that are not memory: cut into chunks on the source, put together and verified on the destination.

Used by `agent.peer_client` and `agent.peer_service`, which carry the chunks over gRPC. An image counts only when its
size and SHA-256 are what the source computed; a name that is anything but a plain file name is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phaul.errors import TransferError
from phaul.units import MIB

CHUNK_BYTES = 1 * MIB  # well under gRPC's 4 MiB a message
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.img")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one image. Pieces of an image come in order and together; the last one carries size and digest."""

    name: str
    data: bytes
    last: bool
    sha256: bytes = b""
    size_bytes: int = 0


def chunks(path: Path) -> Iterator[Chunk]:
    """Cut one image file into chunks, at least one."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as image:
        data = image.read(CHUNK_BYTES)
        while True:
            following = image.read(CHUNK_BYTES)
            digest.update(data)
            size += len(data)
            if not following:
                yield Chunk(path.name, data, True, digest.digest(), size)
                return
            yield Chunk(path.name, data, False)
            data = following


class ImageWriter:
    """Puts images together in a directory.

    Invariant: a file under its final name is complete and verified; one under way ends in `.part`. Owns one open file.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._name = ""
        self._fd = -1
        self._digest = hashlib.sha256()
        self._size = 0
        self.images = 0
        self.bytes = 0

    def write(self, chunk: Chunk) -> None:
        """Take the next chunk. Raises `TransferError` for a bad name, too much data, or a digest that differs."""
        if not NAME.fullmatch(chunk.name):
            raise TransferError(f"the source sent an image with the name {chunk.name!r}")
        if self._fd < 0:
            self._begin(chunk.name)
        elif chunk.name != self._name:
            raise TransferError(f"image {self._name} was cut short: {chunk.name} came before its end")
        if self.bytes + self._size + len(chunk.data) > self._limit_bytes:
            raise TransferError(f"the images are larger than the {self._limit_bytes} bytes reserved for them")
        data = memoryview(chunk.data)
        try:
            while data:  # a tmpfs that is about to be full takes a part
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise TransferError(f"image {chunk.name} could not be written: {error.strerror}") from error
        self._digest.update(chunk.data)
        self._size += len(chunk.data)
        if chunk.last:
            self._end(chunk)

    def close(self) -> None:
        """Finish. Raises `TransferError` when an image is incomplete."""
        if self._fd >= 0:
            self.discard()
            raise TransferError(f"image {self._name} was cut short")

    def discard(self) -> None:
        """Give up an image that is under way; what is written of it stays as `.part`. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _begin(self, name: str) -> None:
        if (self._directory / name).exists():
            raise TransferError(f"image {name} was sent twice")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(self._directory / f"{name}.part", flags, 0o600)
        except OSError as error:
            raise TransferError(f"image {name} could not be written: {error.strerror}") from error
        self._name, self._digest, self._size = name, hashlib.sha256(), 0

    def _end(self, chunk: Chunk) -> None:
        self.discard()
        if self._size != chunk.size_bytes or self._digest.digest() != chunk.sha256:
            raise TransferError(f"image {self._name} was damaged on its way: its checksum does not agree")
        (self._directory / f"{self._name}.part").rename(self._directory / self._name)
        self.images += 1
        self.bytes += self._size
