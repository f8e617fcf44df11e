"""How fast a process tree writes to its memory, and where: measured without stopping it.

Named by `agent.wiring`. Where the kernel notes writes (soft-dirty), every page is watched; that takes the notes from
whoever else counts on them, so never while the workload is being migrated. Elsewhere pages that are chosen at random
are read, hashed and read again later, as QEMU does for its guests: an estimate, and blind to a page that was written
over with what it held. Pages that are swapped out count as not written to.

Reads through ``/proc/PID/mem``, only pages that are in memory, so that the workload does not grow by it.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import xxhash

from phaul.errors import PreflightError
from phaul.migration.dirty_rate import DirtyMapping, DirtyMethod, DirtyPoint, DirtyRate, MemoryKind
from phaul.system import procfs
from phaul.system.memory import page_size_bytes
from phaul.system.page_tracking import Pagemap, clear_soft_dirty, has_soft_dirty
from phaul.system.procfs import Mapping

SHARES_OF_TIME = (0.1, 0.35, 1.0)  # of the time measured, when it is looked what was written to
MOST_SAMPLES = 20_000  # pages: read and hashed in a tenth of a second
LEAST_SAMPLES = 64  # of each area, so that a small one that is always written to is seen
NORMAL_95 = 1.96  # of a normal distribution, 95 % lie within so many standard deviations
SHARED_MEMORY = ("/dev/shm/", "/memfd:", "/SYSV", "/dev/zero", "[anon_shmem")
NOT_MEMORY = ("[vvar", "[vdso]", "[vsyscall]", "[uprobes]", "[vectors]")

Area = tuple[MemoryKind, str]


@dataclass(frozen=True, slots=True)
class Dirty:
    """Of one area: pages in memory, those of them written to, and the variance of that number."""

    resident: int = 0
    dirty: float = 0.0
    variance: float = 0.0

    def __add__(self, other: Dirty) -> Dirty:
        return Dirty(self.resident + other.resident, self.dirty + other.dirty, self.variance + other.variance)


class Watch(Protocol):
    """Notes which pages are written to, from its `begin` on."""

    method: DirtyMethod

    def begin(self) -> tuple[float, int]:
        """Begin; give since when (on `time.monotonic`) and how many pages are watched."""
        ...

    def look(self) -> dict[Area, Dirty]:
        """Say what was written to since the beginning."""
        ...


async def measure(root_pid: int, seconds: float, *, method: DirtyMethod | None = None) -> DirtyRate:
    """Watch a tree for so long. Raises `PreflightError` where there is none, or it may not be looked into."""
    try:
        pids = [pid for pid in procfs.walk_tree(root_pid) if not procfs.read_stat(pid).is_dead]
        command = procfs.read_stat(root_pid).command
    except OSError as error:
        raise _gone(root_pid, error) from error
    if not pids:
        raise PreflightError(f"PID {root_pid} has ended")
    method = method or (DirtyMethod.SOFT_DIRTY if has_soft_dirty() else DirtyMethod.SAMPLING)
    watch: Watch = SoftDirty(pids) if method is DirtyMethod.SOFT_DIRTY else Sampling(pids)
    try:
        began, watched = await asyncio.to_thread(watch.begin)
        curve: list[DirtyPoint] = []
        found: dict[Area, Dirty] = {}
        for share in SHARES_OF_TIME:
            await asyncio.sleep(max(0.0, began + seconds * share - time.monotonic()))
            looking = time.monotonic()
            found = await asyncio.to_thread(watch.look)
            curve.append(DirtyPoint(round((looking - began) * 1e6), _bytes(_travelling(found).dirty)))
        procfs.read_stat(root_pid)
    except OSError as error:
        raise _gone(root_pid, error) from error
    total = _travelling(found)
    return DirtyRate(
        root_pid=root_pid,
        command=command,
        processes=len(pids),
        method=method,
        interval_us=curve[-1].interval_us,
        memory_bytes=_bytes(total.resident),
        dirty_bytes=_bytes(total.dirty),
        uncertainty_bytes=_bytes(NORMAL_95 * math.sqrt(total.variance)),
        pages_watched=watched,
        mappings=tuple(
            sorted(map(_mapping, found.items()), key=lambda each: (-each.dirty_bytes, -each.resident_bytes))
        ),
        curve=tuple(curve),
    )


def _gone(root_pid: int, error: OSError) -> PreflightError:
    if isinstance(error, PermissionError):
        return PreflightError(f"PID {root_pid} may not be looked into", hint="Run the agent as root.")
    return PreflightError(f"there is no process {root_pid} on this host, or it has ended")


def _bytes(pages: float) -> int:
    return round(pages) * page_size_bytes()


def _travelling(found: dict[Area, Dirty]) -> Dirty:
    return sum((each for (kind, _), each in found.items() if kind is not MemoryKind.SHARED_FILE), Dirty())


def _mapping(item: tuple[Area, Dirty]) -> DirtyMapping:
    (kind, path), each = item
    return DirtyMapping(
        kind, path, _bytes(each.resident), _bytes(each.dirty), _bytes(NORMAL_95 * math.sqrt(each.variance))
    )


def area_of(mapping: Mapping) -> Area | None:
    """Say what a mapping is; None where its content is none of the process's own."""
    path = mapping.path
    if path.startswith(NOT_MEMORY) or (path.startswith("/dev/") and not path.startswith(SHARED_MEMORY)):
        return None
    if path == "[heap]":
        return MemoryKind.HEAP, ""
    if path.startswith("[stack"):
        return MemoryKind.STACK, ""
    if mapping.shared:
        if "w" not in mapping.permissions:
            return None
        if not path or path.startswith(SHARED_MEMORY):
            return MemoryKind.SHARED, path
        return MemoryKind.SHARED_FILE, path
    if not path or path.startswith("["):
        return MemoryKind.ANONYMOUS, path
    return MemoryKind.FILE, path


@dataclass(slots=True)
class Pages:
    """Runs of pages of one area, in whichever processes."""

    runs: list[tuple[int, int, int]] = field(default_factory=list)  # PID, first page, count

    @property
    def count(self) -> int:
        """All of them."""
        return sum(count for _, _, count in self.runs)

    def chosen(self, most: int) -> list[tuple[int, int]]:
        """Choose so many at random, each with its PID, in order."""
        ends = list(itertools.accumulate(count for _, _, count in self.runs))
        if not ends:
            return []
        picked = []
        for number in sorted(random.sample(range(ends[-1]), min(most, ends[-1]))):
            index = bisect.bisect_right(ends, number)
            pid, first, count = self.runs[index]
            picked.append((pid, first + number - (ends[index] - count)))
        return picked


def pages_of(pids: Sequence[int], *, soft_dirty: bool = False) -> dict[Area, Pages]:
    """Find the pages of a tree that are in memory and its own. A process that ends meanwhile is left out."""
    size = page_size_bytes()
    found: dict[Area, Pages] = {}
    seen: set[tuple[int, int, int]] = set()
    for pid in pids:
        try:
            mappings = procfs.read_maps(pid)
            with Pagemap(pid) as pagemap:
                for mapping in mappings:
                    area = area_of(mapping)
                    if area is None:
                        continue
                    own = not mapping.shared
                    # Shared memory is looked at once, through the first who has it; its marks are each one's own.
                    key = (mapping.device, mapping.inode, mapping.end - mapping.start)
                    if mapping.shared and not soft_dirty:
                        if key in seen:
                            continue
                        seen.add(key)
                    runs = found.setdefault(area, Pages()).runs
                    for start, end in pagemap.runs(mapping.start, mapping.end, own=own, soft_dirty=soft_dirty):
                        runs.append((pid, start // size, (end - start) // size))
        except (FileNotFoundError, ProcessLookupError):
            if pid == pids[0]:
                raise
    return found


class SoftDirty:
    """Watches every page by the kernel's own notes."""

    method = DirtyMethod.SOFT_DIRTY

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids

    def begin(self) -> tuple[float, int]:
        """Clear the notes of every process."""
        for pid in self._pids:
            clear_soft_dirty(pid)
        began = time.monotonic()
        return began, sum(pages.count for pages in pages_of(self._pids).values())

    def look(self) -> dict[Area, Dirty]:
        """Count what was noted. What several processes share counts at most as often as it is there."""
        dirty = {area: pages.count for area, pages in pages_of(self._pids, soft_dirty=True).items()}
        return {
            area: Dirty(pages.count, min(dirty.get(area, 0), pages.count))
            for area, pages in pages_of(self._pids).items()
        }


class Sampling:
    """Watches some pages of each area by their content, and counts those that are new."""

    method = DirtyMethod.SAMPLING

    def __init__(self, pids: Sequence[int], most: int = MOST_SAMPLES) -> None:
        self._pids = pids
        self._most = most
        self._before: dict[Area, int] = {}
        self._sample: dict[Area, list[tuple[int, int]]] = {}
        self._hashes: dict[Area, list[int | None]] = {}

    def begin(self) -> tuple[float, int]:
        """Choose, read and hash."""
        found = pages_of(self._pids)
        self._before = {area: pages.count for area, pages in found.items()}
        total = sum(self._before.values())
        for area, pages in found.items():
            share = self._most * pages.count / total if total else 0
            self._sample[area] = pages.chosen(max(LEAST_SAMPLES, math.ceil(share)))
        began = time.monotonic()  # a page is read again as long after this as it is now
        self._hashes = self._read()
        return began, sum(len(sample) for sample in self._sample.values())

    def look(self) -> dict[Area, Dirty]:
        """Read again. What has come since counts as written to."""
        after = self._read()
        now = {area: pages.count for area, pages in pages_of(self._pids).items()}
        found = {}
        for area in now.keys() | self._before.keys():
            before = self._before.get(area, 0)
            pairs = list(zip(self._hashes.get(area, []), after.get(area, []), strict=True))
            read = [(old, new) for old, new in pairs if old is not None]
            changed = sum(old != new for old, new in read)
            grown = max(0, now.get(area, 0) - before)
            found[area] = estimate(before, len(read), changed) + Dirty(grown, grown)
        return found

    def _read(self) -> dict[Area, list[int | None]]:
        size = page_size_bytes()
        files: dict[int, int] = {}
        try:
            for pid in self._pids:
                try:
                    files[pid] = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
                except (FileNotFoundError, ProcessLookupError):
                    continue
            return {
                area: [_hash(files.get(pid), page * size, size) for pid, page in sample]
                for area, sample in self._sample.items()
            }
        finally:
            for fd in files.values():
                os.close(fd)


def _hash(fd: int | None, address: int, size: int) -> int | None:
    if fd is None:
        return None
    try:
        return xxhash.xxh3_64_intdigest(os.pread(fd, size, address))
    except OSError:
        return None  # unmapped since


def estimate(pages: int, watched: int, changed: int) -> Dirty:
    """Say how many of `pages` were written to when `changed` of `watched`, chosen at random, were.

    The variance is that of drawing without putting back, by a share pulled a little to the middle (Agresti and Coull),
    so that a sample of which none has changed does not claim to be sure.
    """
    if not watched:
        return Dirty(pages)
    share = (changed + 2) / (watched + 4)
    left_out = max(0.0, 1 - watched / pages) if pages else 0.0
    return Dirty(pages, pages * changed / watched, pages * pages * share * (1 - share) / watched * left_out)
