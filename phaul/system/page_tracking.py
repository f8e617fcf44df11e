"""Which pages of a process are in memory, and which were written to: ``/proc/PID/pagemap`` and ``clear_refs``.

Called by `workloads.dirty_rate`. The kernel's soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst) exist only
where it was built with them, and there is one set a process: `clear_soft_dirty` takes them from whoever else counts on
them, CRIU's pre-dump first of all. All else only reads. Pages are found by the ioctl PAGEMAP_SCAN (Linux 6.7), which
does not stop at holes, else by reading the pagemap. The process is not stopped; the kernel holds its memory map for
moments.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import re
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

PROC = Path("/proc")
CLEAR_SOFT_DIRTY = "4"
ENTRY_BYTES = 8
ENTRIES_AT_ONCE = 1 << 16

# struct pm_scan_arg of linux/fs.h: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
# category_mask, category_anyof_mask, return_mask; struct page_region: start, end, categories.
SCAN_ARGUMENT = struct.Struct("=12Q")
REGION = struct.Struct("=3Q")
REGIONS_AT_ONCE = 4096
PAGEMAP_SCAN = 3 << 30 | SCAN_ARGUMENT.size << 16 | ord("f") << 8 | 16  # _IOWR('f', 16, struct pm_scan_arg)
IS_FILE = 1 << 2
IS_PRESENT = 1 << 3
IS_SOFT_DIRTY = 1 << 7

# The same in an entry of the pagemap: bit 63 present, 61 of a file or shared, 55 soft-dirty.
PRESENT_BYTE, FILE_BYTE, SOFT_DIRTY_BYTE = (7, 0x80), (7, 0x20), (6, 0x80)

Runs = Iterator[tuple[int, int]]  # (address of the first byte, address after the last)


@functools.cache
def has_soft_dirty() -> bool:
    """Say whether this kernel notes writes: whether a page of our own that was just written to is marked."""
    page = resource.getpagesize()
    with mmap.mmap(-1, page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[0] = 1
        content = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(content)
        with Pagemap(os.getpid()) as pagemap:
            marked = any(True for _ in pagemap.read(address, address + page, soft_dirty=True))
        del content
    return marked


def clear_soft_dirty(pid: int) -> None:
    """Mark every page of a process as not written to. Raises `OSError`."""
    (PROC / str(pid) / "clear_refs").write_text(CLEAR_SOFT_DIRTY)


class Pagemap:
    """The pagemap of one process. Owns its descriptor from entering to leaving its context; `OSError` once it ends."""

    def __init__(self, pid: int) -> None:
        self._path = PROC / str(pid) / "pagemap"
        self._page = resource.getpagesize()
        self._fd = -1

    def __enter__(self) -> Self:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def runs(self, start: int, end: int, *, own: bool = False, soft_dirty: bool = False) -> Runs:
        """Give the runs of pages in memory between two addresses, lowest first.

        Args:
            own: leave out those that are still the same as in the mapped file.
            soft_dirty: only those that were written to since `clear_soft_dirty`.
        """
        try:
            yield from self.scan(start, end, own=own, soft_dirty=soft_dirty)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            yield from self.read(start, end, own=own, soft_dirty=soft_dirty)

    def scan(self, start: int, end: int, *, own: bool = False, soft_dirty: bool = False) -> Runs:
        """Do so by PAGEMAP_SCAN. `OSError` with ENOTTY or EINVAL, before the first run, where the kernel lacks it."""
        regions = bytearray(REGION.size * REGIONS_AT_ONCE)
        vector = ctypes.addressof(ctypes.c_char.from_buffer(regions))
        wanted = IS_PRESENT | (IS_FILE if own else 0) | (IS_SOFT_DIRTY if soft_dirty else 0)
        inverted = IS_FILE if own else 0
        while start < end:
            fields = (start, end, 0, vector, REGIONS_AT_ONCE, 0, inverted, wanted, 0, IS_PRESENT)
            argument = bytearray(SCAN_ARGUMENT.pack(SCAN_ARGUMENT.size, 0, *fields))
            count = fcntl.ioctl(self._fd, PAGEMAP_SCAN, argument)
            for index in range(count):
                first, after, _ = REGION.unpack_from(regions, index * REGION.size)
                yield first, after
            reached = SCAN_ARGUMENT.unpack(argument)[4]
            if reached <= start:
                return
            start = reached

    def read(self, start: int, end: int, *, own: bool = False, soft_dirty: bool = False) -> Runs:
        """Do so by reading an entry for each page."""
        address = start
        while address < end:
            pages = min(ENTRIES_AT_ONCE, (end - address) // self._page)
            entries = os.pread(self._fd, pages * ENTRY_BYTES, address // self._page * ENTRY_BYTES)
            if not entries:
                return
            for run in re.finditer(b"\x01+", _wanted(entries, own, soft_dirty)):
                yield address + run.start() * self._page, address + run.end() * self._page
            address += len(entries) // ENTRY_BYTES * self._page


def _wanted(entries: bytes, own: bool, soft_dirty: bool) -> bytes:
    """A byte for each entry: 1 where the page is asked for."""
    wanted = _bits(entries, *PRESENT_BYTE)
    if soft_dirty:
        wanted &= _bits(entries, *SOFT_DIRTY_BYTE)
    if own:
        wanted &= ~_bits(entries, *FILE_BYTE)
    return wanted.to_bytes(len(entries) // ENTRY_BYTES, "little")


def _bits(entries: bytes, byte: int, bit: int) -> int:
    """One bit of each entry as a number with a byte for each, so that all are combined at once."""
    table = bytes(bool(value & bit) for value in range(256))
    return int.from_bytes(entries[byte::ENTRY_BYTES].translate(table), "little")
