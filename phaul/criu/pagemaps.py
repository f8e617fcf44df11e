"""Where in a directory of images the pages of a task lie that CRIU's restore leaves to be loaded later.

Used by `criu.loader`. A pagemap lists runs of pages; the content of those with PE_PRESENT follows one another in its
pages file, that of PE_PARENT lies in the directory to which the link `parent` leads. CRIU leaves out what has PE_LAZY
in the last pagemap (CRIU 4.2, criu/mem.c: restore_priv_vma_content), whichever directory holds it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from phaul.criu.images import COMMON_MAGIC, MEMORY_MAP_MAGIC, PAGEMAP_MAGIC, ImageError, decode_records
from phaul.criu.lazy_ranges import Run
from phaul.rpc.criu import images_pb2
from phaul.system.memory import page_size_bytes

PARENT = "parent"
IN_PARENT, LAZY, PRESENT = 1, 2, 4  # PE_* (criu/include/pagemap.h)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One run of a pagemap. `offset` is where in the pages file its content lies, where it is PRESENT."""

    start: int
    end: int
    flags: int
    offset: int


class LazyPages:
    """The images below a directory. `files` numbers the pages files that `runs` has named so far."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.files: list[Path] = []
        self._read: dict[tuple[Path, int], tuple[Sequence[_Entry], int]] = {}

    def runs(self, pid: int) -> list[Run]:
        """Give what is to be loaded of a task, cut at the borders of its mappings: a page is put into one of them.

        Raises `ImageError` or OSError where the images are not what CRIU writes.
        """
        borders = _mapping_ends(self._directory / f"mm-{pid}.img")
        found: list[Run] = []
        entries, file = self._entries(self._directory, pid)
        for entry in entries:
            if entry.flags & LAZY:
                for run in self._content(self._directory, pid, entry, file):
                    found += _cut(run, borders)
        return found

    def _content(self, directory: Path, pid: int, entry: _Entry, file: int) -> Iterator[Run]:
        if entry.flags & PRESENT:
            yield Run(entry.start, entry.end, file, entry.offset)
            return
        if not entry.flags & IN_PARENT:
            return
        above = directory / PARENT
        entries, file = self._entries(above, pid)
        starts = [each.start for each in entries]
        position = entry.start
        for each in entries[max(bisect_right(starts, entry.start) - 1, 0) :]:
            if each.start >= entry.end:
                break
            if each.end <= position:
                continue
            first, last = max(each.start, position), min(each.end, entry.end)
            part = _Entry(first, last, each.flags, each.offset + first - each.start)
            if first > position:
                break
            yield from self._content(above, pid, part, file)
            position = last
        if position != entry.end:
            raise ImageError(f"{above} lacks pages of task {pid} from {position:#x} on")

    def _entries(self, directory: Path, pid: int) -> tuple[Sequence[_Entry], int]:
        """Read one pagemap; give its entries and the number of its pages file. Remembered, as `parent` asks often."""
        key = (directory, pid)
        if key not in self._read:
            self._read[key] = self._read_entries(directory, pid)
        return self._read[key]

    def _read_entries(self, directory: Path, pid: int) -> tuple[Sequence[_Entry], int]:
        records = decode_records((directory / f"pagemap-{pid}.img").read_bytes(), (COMMON_MAGIC, PAGEMAP_MAGIC))
        head = images_pb2.PagemapHead.FromString(next(records))
        self.files.append(directory / f"pages-{head.pages_id}.img")
        entries = []
        offset = 0
        for record in records:
            entry = images_pb2.PagemapEntry.FromString(record)
            size = (entry.nr_pages or entry.compat_nr_pages) * page_size_bytes()
            entries.append(_Entry(entry.vaddr, entry.vaddr + size, entry.flags, offset))
            if entry.flags & PRESENT:
                offset += size
        return entries, len(self.files) - 1


def _mapping_ends(path: Path) -> list[int]:
    records = decode_records(path.read_bytes(), (COMMON_MAGIC, MEMORY_MAP_MAGIC))
    memory_map = images_pb2.MemoryMap.FromString(next(records))
    return sorted(mapping.end for mapping in memory_map.vmas)


def _cut(run: Run, borders: Sequence[int]) -> Iterator[Run]:
    start = run.start
    for border in borders[bisect_right(borders, start) :]:
        yield run.cut(start, border)
        if border >= run.end:
            return
        start = border
