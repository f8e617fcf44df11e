"""A few pieces of a workload's memory, read while it runs: how well it compresses is told from them.

Called by `workloads.process`. Pieces lie at random in what CRIU would dump: private memory that was written to, and
shared memory. Nothing that is not there is touched: reading it would have the kernel make a page of it.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Sequence

from phaul.system.memory import page_size_bytes
from phaul.system.procfs import PROC, Mapping, read_maps
from phaul.system.task_memory import memory_of_task
from phaul.units import KIB, MIB

PIECE_BYTES = 64 * KIB
SAMPLE_BYTES = 2 * MIB  # zstd takes 5 ms for it; a quarter of it gave the ratio of the whole within a tenth
MOST_LOOKS = 2000  # at 5 µs each: large areas that are hardly used at all are looked into in vain
MOST_TASKS = 16

ENTRY = struct.Struct("=Q")  # of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)
PRESENT, FILE_OR_SHARED = 1 << 63, 1 << 61


def sample(pids: Sequence[int], choose: random.Random | None = None) -> tuple[bytes, ...]:
    """Give pieces of at most 64 KiB, at most 2 MiB in all, of the memory of these tasks.

    Blocks. Fewer, or none, where there is little memory or a task has ended meanwhile.
    """
    choose = choose or random.Random()
    if len(pids) > MOST_TASKS:
        pids = choose.sample(list(pids), MOST_TASKS)
    areas = [(pid, area) for pid in pids for area in _areas(pid)]
    pieces: list[bytes] = []
    taken: set[tuple[int, int]] = set()
    left = SAMPLE_BYTES
    with _Memories() as memories:
        weights = [area.end - area.start for _, area in areas]
        for pid, area in choose.choices(areas, weights, k=MOST_LOOKS) if areas else ():
            address = area.start + choose.randrange(area.end - area.start) // PIECE_BYTES * PIECE_BYTES
            if (pid, address) in taken:
                continue
            taken.add((pid, address))
            piece = memories.read(pid, area, address)
            if piece:
                pieces.append(piece)
                left -= len(piece)
            if left <= 0:
                break
    return tuple(pieces)


def _areas(pid: int) -> list[Mapping]:
    """The mappings of which CRIU dumps pages: what can be written, and what is shared without a file behind it."""
    try:
        maps = read_maps(pid)
    except OSError:
        return []
    return [each for each in maps if "r" in each.permissions and ("w" in each.permissions or each.inode == 0)]


class _Memories:
    """The memory files of several tasks, open until the context is left."""

    def __init__(self) -> None:
        self._files: dict[int, tuple[int, int]] = {}
        self._page = page_size_bytes()

    def __enter__(self) -> _Memories:
        return self

    def __exit__(self, *_: object) -> None:
        for pair in self._files.values():
            for descriptor in pair:
                os.close(descriptor)

    def read(self, pid: int, area: Mapping, address: int) -> bytes:
        """Give the first stretch of pages from `address` on that are there; at most a piece."""
        shared = area.permissions[3] == "s"
        count = min(PIECE_BYTES, area.end - address) // self._page
        try:
            memory, pagemap = self._open(pid)
            entries = os.pread(pagemap, count * ENTRY.size, address // self._page * ENTRY.size)
            there = [
                bool(entry & PRESENT) and (shared or not entry & FILE_OR_SHARED)
                for (entry,) in ENTRY.iter_unpack(entries)
            ]
            if not any(there):
                return b""
            first = there.index(True)
            length = there.index(False, first) - first if False in there[first:] else len(there) - first
            return os.pread(memory, length * self._page, address + first * self._page)
        except OSError:
            return b""  # unmapped, or ended, or not to be read (a device)

    def _open(self, pid: int) -> tuple[int, int]:
        if pid not in self._files:
            flags = os.O_RDONLY | os.O_CLOEXEC
            memory = os.open(memory_of_task(pid), flags)
            try:
                self._files[pid] = memory, os.open(PROC / str(pid) / "pagemap", flags)
            except OSError:
                os.close(memory)
                raise
        return self._files[pid]
