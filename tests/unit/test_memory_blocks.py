"""Blocks of memory and their digests: the same wherever they are read, and however the content comes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from phaul.migration.page_images import PageImage
from phaul.system import task_memory
from phaul.system.memory import page_size_bytes
from phaul.system.task_memory import CHUNK_BYTES, RunningDigests, block_sizes, blocks_of, blocks_of_image, digests
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


@given(ascending_runs(), st.integers(1, 5), st.integers(1, 9))
def test_hashed_as_it_comes_or_from_files_it_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]], files: int, at_once: int
) -> None:
    directory = tmp_path_factory.mktemp("pages")
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
    pieces = []
    size = len(content) // files // PAGE * PAGE
    for number in range(files):
        path = directory / str(number)
        start = number * size
        piece = content[start : start + size] if number < files - 1 else content[start:]
        path.write_bytes(b"x" * PAGE * number + piece)
        pieces.append((path, PAGE * number, len(piece)))
    sizes = block_sizes(runs, PAGE)
    wanted = []
    start = 0
    for size in sizes:
        wanted.append(xxhash.xxh3_128_digest(content[start : start + size]))
        start += size
    assert list(running.digests()) == wanted
    assert list(digests(blocks_of_image(runs, pieces, PAGE))) == wanted


HOLDS_MEMORY = """
import ctypes
memory = mmap.mmap(-1, 64 * {page}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(64):
    if page % 7:
        memory[page * {page}:(page + 1) * {page}] = bytes([page]) * {page}
with open("told", "w") as told:
    told.write(str(ctypes.addressof(ctypes.c_char.from_buffer(memory))))
"""


def test_what_was_hashed_ahead_counts_only_where_it_was_guessed_right(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(HOLDS_MEMORY.format(page=PAGE)).pid
    address = int((tmp_path / "told").read_text())
    image = PageImage(f"pagemap-{process}.img", tuple((address + page * PAGE, 1) for page in range(1, 64) if page % 7))
    plain = memory.digests_here([process], image, {})
    assert ahead.hash_ahead([process], lambda: False) == {}, "it may run: nobody traces it"
    monkeypatch.setattr(ahead, "_is_traced", lambda _: True)
    known = ahead.hash_ahead([process], lambda: False)[image.name]
    guessed = [known[number][0] == segments for number, segments in blocks_of(image.runs, PAGE)]
    assert any(guessed)
    reads: list[object] = []
    read = task_memory.BlockReader.read

    def counted(self: task_memory.BlockReader, segments: Sequence[tuple[int, int]]) -> memoryview:
        reads.append(segments)
        return read(self, segments)

    monkeypatch.setattr(task_memory.BlockReader, "read", counted)
    assert memory.digests_here([process], image, known) == plain
    assert len(reads) == guessed.count(False)
    wrong = dict.fromkeys(known, (((address, PAGE),), b"wrong"))
    assert memory.digests_here([process], image, wrong) == plain
