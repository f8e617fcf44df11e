"""Memory with a content of which every page can be told from every other. Used by `server.py`."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct

PAGE_BYTES = mmap.PAGESIZE
CHUNK_BYTES = 1 << 20
STAMP = struct.Struct("=QQ")  # the page's number; the pass that wrote it last


class Content:
    """Anonymous memory, each page stamped with its number and the pass that wrote it.

    The rest is random bytes; where it shall be compressible, three quarters of each page are zeros.

    Invariant: the pages before `_cursor` carry the stamp of this pass, the others of the one before.
    """

    def __init__(self, mebibytes: int, compressible: bool = False) -> None:
        self._memory = mmap.mmap(-1, max(mebibytes << 20, PAGE_BYTES), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pages = len(self._memory) // PAGE_BYTES
        self._pass = 1
        self._cursor = 0
        chunk = os.urandom(CHUNK_BYTES)
        if compressible:
            quarter = PAGE_BYTES // 4
            pages = range(0, CHUNK_BYTES, PAGE_BYTES)
            chunk = b"".join(chunk[start : start + quarter] + bytes(3 * quarter) for start in pages)
        for start in range(0, len(self._memory), CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, len(self._memory))
            self._memory[start:end] = chunk[: end - start]
        for page in range(self._pages):
            STAMP.pack_into(self._memory, page * PAGE_BYTES, page, 0)

    def checksum(self) -> str:
        """Say what the memory holds."""
        with memoryview(self._memory) as view:
            return hashlib.sha256(view).hexdigest()

    def change(self, pages: int) -> None:
        """Write the next pages; after the last one a new pass begins."""
        for _ in range(pages):
            STAMP.pack_into(self._memory, self._cursor * PAGE_BYTES, self._cursor, self._pass)
            self._cursor += 1
            if self._cursor == self._pages:
                self._cursor = 0
                self._pass += 1

    def wrong_pages(self) -> list[int]:
        """Give the pages that are not as the last `change` left them."""
        return [
            page
            for page in range(self._pages)
            if STAMP.unpack_from(self._memory, page * PAGE_BYTES)
            != (page, self._pass if page < self._cursor else self._pass - 1)
        ]

    @property
    def passes(self) -> int:
        """How many times all of it was written."""
        return self._pass - 1
