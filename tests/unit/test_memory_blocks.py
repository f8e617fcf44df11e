"""Blocks of memory and their digests: the same wherever they are read, and however the content comes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import TransferError
from phaul.migration.page_images import Block, HashedImage
from phaul.system import task_memory
from phaul.system.memory import page_size_bytes
from phaul.system.task_memory import CHUNK_BYTES, RunningDigests, blocks_of
from phaul.transfer.page_digests import FINE_BYTES
from phaul.workloads import ahead, memory
from tests.unit.process_trees import Start

PAGE = page_size_bytes()
PAGES_A_BLOCK = CHUNK_BYTES // PAGE


@st.composite
def ascending_runs(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Runs as an image has them; some follow each other without a gap."""
    runs = []
    page = draw(st.integers(0, 2 * PAGES_A_BLOCK))
    for _ in range(draw(st.integers(1, 6))):
        pages = draw(st.integers(1, 3 * PAGES_A_BLOCK))
        runs.append((page * PAGE, pages))
        page += pages + draw(st.integers(0, PAGES_A_BLOCK))
    return runs


@given(ascending_runs())
def test_blocks_are_cut_by_address_alone(runs: list[tuple[int, int]]) -> None:
    pages = {address // PAGE + number for address, count in runs for number in range(count)}
    found: dict[int, set[int]] = {}
    for number, segments in blocks_of(runs, PAGE):
        assert number not in found
        found[number] = {at // PAGE for start, size in segments for at in range(start, start + size, PAGE)}
        assert all(before + size < after for (before, size), (after, _) in pairwise(segments))
    wanted: dict[int, set[int]] = {}
    for page in pages:
        wanted.setdefault(page // PAGES_A_BLOCK, set()).add(page)
    assert found == wanted
    assert list(found) == sorted(found)


@given(ascending_runs(), st.integers(1, 9))
def test_hashed_as_it_comes_it_is_the_same(runs: list[tuple[int, int]], at_once: int) -> None:
    content = os.urandom(sum(pages for _, pages in runs) * PAGE)
    running = RunningDigests()
    at = 0
    for address, pages in runs:
        end = at + pages * PAGE
        while at < end:
            count = min(end - at, at_once * PAGE // 3 + 1)
            running.feed(address, memoryview(content)[at : at + count])
            address += count
            at += count
    wanted = []
    start = 0
    for _, segments in blocks_of(runs, PAGE):
        size = sum(size for _, size in segments)
        wanted.append(xxhash.xxh64_digest(content[start : start + size]))
        start += size
    assert list(running.digests()) == wanted


HOLDS_MEMORY = """
import ctypes
memory = mmap.mmap(-1, 64 * {page}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(64):
    if page % 7:
        memory[page * {page}:(page + 1) * {page}] = bytes([page]) * {page}
with open("told", "w") as told:
    told.write(str(ctypes.addressof(ctypes.c_char.from_buffer(memory))))
"""


@pytest.fixture
def holder(start: Start, tmp_path: Path) -> tuple[int, int]:
    """A process, and where it holds 64 pages, each seventh of them never touched."""
    process = start(HOLDS_MEMORY.format(page=PAGE)).pid
    return process, int((tmp_path / "told").read_text())


def hashed(process: int, address: int, block_bytes: int = CHUNK_BYTES, wrong: int = -1) -> HashedImage:
    """What a destination says that has it all, but for a page that is `wrong`."""
    runs = tuple((address + page * PAGE, 1) for page in range(64) if page % 7)
    digests = []
    for _, segments in blocks_of(runs, PAGE, block_bytes):
        running = xxhash.xxh64()
        for start, size in segments:
            for page in range((start - address) // PAGE, (start + size - address) // PAGE):
                running.update(bytes([page if page != wrong else 255]) * PAGE)
        digests.append(running.digest())
    return HashedImage(f"pagemap-{process}.img", runs, tuple(digests), block_bytes)


@pytest.mark.parametrize("block_bytes", [CHUNK_BYTES, FINE_BYTES])
def test_a_page_that_differs_is_found(holder: tuple[int, int], block_bytes: int) -> None:
    process, address = holder
    assert memory.differing([process], [hashed(*holder, block_bytes)], {}) == ()
    (block,) = memory.differing([process], [hashed(*holder, block_bytes, wrong=40)], {})
    assert any(at <= address + 40 * PAGE < at + pages * PAGE for at, pages in block.runs)
    first, last = block.runs[0][0], block.runs[-1][0] + block.runs[-1][1] * PAGE - 1
    assert first // block_bytes == last // block_bytes
    here = b"".join(bytes([(at - address) // PAGE + n]) * PAGE for at, pages in block.runs for n in range(pages))
    assert not memory.differs([process], block, here)
    assert memory.differs([process], block, here[:-1] + b"x")
    assert memory.differs([process], block, here[:-PAGE])


def test_what_cannot_be_read_differs(holder: tuple[int, int]) -> None:
    image = hashed(*holder)
    gone = dataclasses.replace(image, runs=tuple((at % (64 * PAGE) + PAGE, pages) for at, pages in image.runs))
    digests = (b"0" * 16,) * len(list(blocks_of(gone.runs, PAGE)))
    found = memory.differing([holder[0]], [dataclasses.replace(gone, digests=digests)], {})
    assert len(found) == len(digests)
    with pytest.raises(TransferError, match="could not be read"):
        memory.differs([holder[0]], found[0], b"")
    shared = HashedImage("pagemap-shmem-1.img", ((0, 1),), (b"0" * 16,), CHUNK_BYTES)
    assert memory.differing([holder[0]], [shared], {}) == (Block("pagemap-shmem-1.img", ((0, 1),)),)


@pytest.mark.parametrize(
    "image",
    [
        HashedImage("pagemap-1.img", ((0, 1),), (), CHUNK_BYTES),
        HashedImage("../etc/passwd", ((0, 1),), (b"0" * 16,), CHUNK_BYTES),
        HashedImage("pagemap-1.img", ((0, 1),), (b"0" * 16,), 2 * CHUNK_BYTES),
    ],
)
def test_digests_that_make_no_sense_are_refused(image: HashedImage) -> None:
    with pytest.raises(TransferError):
        memory.differing([os.getpid()], [image], {})


HOLDS_MUCH = """
memory = mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range({size} // {page}):
    memory[page * {page}:page * {page} + 4] = page.to_bytes(4, "little")
"""


def test_many_blocks_that_are_read_at_once_are_hashed_one_by_one(start: Start) -> None:
    process = start(HOLDS_MUCH.format(size=4 * ahead.READ_BYTES, page=PAGE)).pid
    (found,) = ahead.hash_ahead([process], lambda: False).values()
    whole = {number: ours for number, (segments, ours) in found.items() if segments[0][1] == CHUNK_BYTES}
    assert len(set(whole.values())) >= 3 * ahead.READ_BYTES // CHUNK_BYTES
    with task_memory.memory_of_task(process).open("rb", buffering=0) as held:
        for number, ours in whole.items():
            assert found[number][0] == ((number * CHUNK_BYTES, CHUNK_BYTES),)
            assert ours == xxhash.xxh64_digest(os.pread(held.fileno(), CHUNK_BYTES, number * CHUNK_BYTES))


def test_what_was_hashed_ahead_is_not_hashed_again(holder: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    process, _ = holder
    image = hashed(*holder)
    known = ahead.hash_ahead([process], lambda: False)
    guessed = [
        known[image.name][number] == (segments, theirs)
        for (number, segments), theirs in zip(blocks_of(image.runs, PAGE), image.digests, strict=True)
    ]
    assert any(guessed)
    monkeypatch.setattr(ahead, "PART_READS", 1)  # to be hashed by whichever thread is free
    assert ahead.hash_ahead([process], lambda: False) == known
    assert ahead.hash_ahead([process], lambda: True) == {image.name: {}}
    reads: list[object] = []
    read = task_memory.BlockReader.read

    def counted(self: task_memory.BlockReader, segments: Sequence[tuple[int, int]]) -> memoryview:
        reads.append(segments)
        return read(self, segments)

    monkeypatch.setattr(task_memory.BlockReader, "read", counted)
    assert memory.differing([process], [image], known) == ()
    assert len(reads) == guessed.count(False)
    reads.clear()
    stale = {image.name: dict.fromkeys(known[image.name], (((0, PAGE),), b"wrong"))}
    assert memory.differing([process], [image], stale) == ()
    assert len(reads) == len(guessed)
