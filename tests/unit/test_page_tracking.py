"""Which pages are in memory: two ways of asking the kernel give the same answer; entries of a pagemap, bit by bit."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.system import page_tracking
from phaul.system.memory import page_size_bytes
from phaul.system.page_tracking import Pagemap, has_soft_dirty

PAGE = page_size_bytes()
PAGES = 64
PRESENT, SWAPPED, FILE, SOFT_DIRTY = 1 << 63, 1 << 62, 1 << 61, 1 << 55


@contextmanager
def address_of(memory: mmap.mmap) -> Iterator[int]:
    """Where a mapping lies."""
    content = ctypes.c_char.from_buffer(memory)
    try:
        yield ctypes.addressof(content)
    finally:
        del content


def numbers(runs: Iterator[tuple[int, int]], start: int) -> list[int]:
    """The pages of runs, counted from `start`."""
    return [page for first, after in runs for page in range((first - start) // PAGE, (after - start) // PAGE)]


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    """Private memory without a file, of which nothing is there yet."""
    with mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped:
        mapped.madvise(mmap.MADV_NOHUGEPAGE)
        yield mapped


@pytest.mark.parametrize("own", [False, True])
def test_both_ways_find_the_pages_that_are_there(memory: mmap.mmap, own: bool) -> None:
    touched = [0, 1, 2, 7, 40, 63]
    for page in touched:
        memory[page * PAGE] = 1
    with address_of(memory) as start, Pagemap(os.getpid()) as pagemap:
        end = start + PAGES * PAGE
        assert numbers(pagemap.runs(start, end, own=own), start) == touched
        assert numbers(pagemap.read(start, end, own=own), start) == touched


def test_pages_that_still_are_the_file_s_are_not_own() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(8 * PAGE))
        file.flush()
        with mmap.mmap(file.fileno(), 8 * PAGE, flags=mmap.MAP_PRIVATE) as mapped:
            assert not any(mapped[page * PAGE] for page in range(8))
            mapped[3 * PAGE] = 1
            with address_of(mapped) as start, Pagemap(os.getpid()) as pagemap:
                end = start + 8 * PAGE
                assert len(numbers(pagemap.runs(start, end), start)) == 8
                assert numbers(pagemap.runs(start, end, own=True), start) == [3]
                assert numbers(pagemap.read(start, end, own=True), start) == [3]


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EINVAL])
def test_a_kernel_without_the_scan_is_asked_the_old_way(
    memory: mmap.mmap, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, "no")

    memory[5 * PAGE] = 1
    monkeypatch.setattr("phaul.system.page_tracking.fcntl.ioctl", refuse)
    with address_of(memory) as start, Pagemap(os.getpid()) as pagemap:
        assert numbers(pagemap.runs(start, start + PAGES * PAGE), start) == [5]


def test_more_regions_than_are_asked_for_at_once(memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_tracking, "REGIONS_AT_ONCE", 3)
    monkeypatch.setattr(page_tracking, "ENTRIES_AT_ONCE", 5)
    touched = list(range(0, PAGES, 2))
    for page in touched:
        memory[page * PAGE] = 1
    with address_of(memory) as start, Pagemap(os.getpid()) as pagemap:
        assert numbers(pagemap.runs(start, start + PAGES * PAGE), start) == touched
        assert numbers(pagemap.read(start, start + PAGES * PAGE), start) == touched


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.integers(0, (1 << 54) - 1)), min_size=1))
def test_entries_are_read_bit_by_bit(drawn: list[tuple[bool, bool, bool, int]]) -> None:
    entries = b"".join(
        struct.pack("<Q", present * PRESENT | file * FILE | dirty * SOFT_DIRTY | frame)
        for present, file, dirty, frame in drawn
    )
    for own in (False, True):
        for soft_dirty in (False, True):
            wanted = page_tracking._wanted(entries, own, soft_dirty)
            assert list(wanted) == [
                present and (dirty or not soft_dirty) and not (file and own) for present, file, dirty, _ in drawn
            ]


def test_whether_the_kernel_notes_writes_is_asked_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it says that it does, a page of ours is marked; where it does not, none ever is."""
    has_soft_dirty.cache_clear()
    said = has_soft_dirty()
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped:
        mapped[0] = 1
        with address_of(mapped) as start, Pagemap(os.getpid()) as pagemap:
            assert bool(numbers(pagemap.read(start, start + PAGE, soft_dirty=True), start)) is said
