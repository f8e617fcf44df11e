"""What is hashed of received pages after each round, against sets of pages."""

from __future__ import annotations

import os

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from phaul.criu.images import encode_pagemap
from phaul.migration.page_images import PageImage, Runs
from phaul.system.task_memory import blocks_of
from phaul.transfer.page_digests import FINE_BYTES, content, hashed, subtract
from phaul.transfer.page_protocol import PageFlag, task_image
from phaul.transfer.page_store import PageStore, Received

PAGE = 4096
IMAGE, NAME = task_image(7), "pagemap-7.img"
PAGES = st.sets(st.integers(0, 40))


def runs_of(pages: set[int]) -> Runs:
    found: list[tuple[int, int]] = []
    for page in sorted(pages):
        if found and found[-1][0] + found[-1][1] * PAGE == page * PAGE:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page * PAGE, 1))
    return tuple(found)


def pages_of(runs: Runs) -> set[int]:
    return {address // PAGE + number for address, pages in runs for number in range(pages)}


@given(PAGES, PAGES)
def test_runs_without_others(some: set[int], away: set[int]) -> None:
    assert subtract(runs_of(some), runs_of(away), PAGE) == runs_of(some - away)


def round_of(store: PageStore, memory: dict[int, bytes], sent: set[int]) -> Received:
    store.begin_round()
    store.open(IMAGE, NAME)
    for page in sorted(memory):
        if page in sent:
            for descriptor, offset, _ in store.add(IMAGE, page * PAGE, 1, PageFlag.PRESENT):
                os.pwrite(descriptor, memory[page], offset)
        else:
            list(store.add(IMAGE, page * PAGE, 1, PageFlag.PARENT))
    return store.end_round()


@given(st.sets(st.integers(0, 40), min_size=1), st.lists(st.tuples(PAGES, PAGES, PAGES, PAGES), min_size=1, max_size=4))
def test_what_came_and_what_is_left_of_the_rest_is_hashed_where_it_lies(
    tmp_path_factory: pytest.TempPathFactory,
    first: set[int],
    rounds: list[tuple[set[int], set[int], set[int], set[int]]],
) -> None:
    store = PageStore(tmp_path_factory.mktemp("pages"), PAGE, 1 << 30, encode_pagemap)
    memory = {page: os.urandom(PAGE) for page in first}
    received = round_of(store, memory, set(memory))
    for written, new, given_up, pending in rounds:
        memory |= {page: os.urandom(PAGE) for page in new | (written & memory.keys())}
        for page in given_up:
            memory.pop(page, None)
        sent = (written | new) & memory.keys()
        received = round_of(store, memory, sent)
        parts = hashed(received, [PageImage(NAME, runs_of(pending)), PageImage("pagemap-8.img", ((0, 1),))], PAGE)
        wanted = [pages for pages in (sent, (pending & memory.keys()) - sent) if pages]
        assert [pages_of(part.runs) for part in parts] == wanted
        for part in parts:
            assert (part.name, part.block_bytes) == (NAME, FINE_BYTES)
            blocks = [segments for _, segments in blocks_of(part.runs, PAGE, FINE_BYTES)]
            here = [
                b"".join(memory[at // PAGE] for start, size in segments for at in range(start, start + size, PAGE))
                for segments in blocks
            ]
            assert list(part.digests) == list(map(xxhash.xxh64_digest, here))
        for page in memory:
            assert content(received, NAME, ((page * PAGE, 1),), PAGE) == memory[page]
    assert content(received, NAME, ((4096 * PAGE, 1),), PAGE) == b"", "not there"
    assert content(received, NAME, ((0, 1 << 20),), PAGE) == b"", "no block"
    assert content(received, "pagemap-8.img", ((0, 1),), PAGE) == b""
    store.close()
