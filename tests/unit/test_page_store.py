"""The store of several rounds: what CRIU would read out of the chain is the workload's memory as it was at the end."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phaul.criu.images import encode_pagemap
from phaul.errors import TransferError
from phaul.lab.fake_images import read_pages
from phaul.transfer.page_digests import PlacedReader
from phaul.transfer.page_protocol import PageFlag, task_image
from phaul.transfer.page_store import PageStore, Received, forget_rounds

PAGE = 512  # any number will do
LIMIT_BYTES = 1 << 20
NAMES = {task_image(number): f"pagemap-{number}.img" for number in (1, 2)}


@dataclass
class Task:
    """What is sent of one image: its pages by number, and which of them were written since the last round."""

    memory: dict[int, bytes] = field(default_factory=dict)
    sent: set[int] = field(default_factory=set)
    came: set[int] = field(default_factory=set)  # the addresses that the last round had to send


def send_round(store: PageStore, tasks: dict[int, Task]) -> Received:
    """Send what a dump would: pages that are as the round before had them as its parent's, the others as they are."""
    store.begin_round()
    for image, task in tasks.items():
        has_parent = store.open(image, NAMES[image])
        assert store.has_parent(image) == has_parent
        task.came = set()
        for number, content in sorted(task.memory.items()):
            if has_parent and number in task.sent:
                assert list(store.add(image, number * PAGE, 1, PageFlag.PARENT)) == []
                continue
            task.came.add(number * PAGE)
            for descriptor, offset, count in store.add(image, number * PAGE, 1, PageFlag.PRESENT):
                assert count == PAGE
                os.pwrite(descriptor, content, offset)
        task.sent = set(task.memory)
    return store.end_round()


# What the workload does between two rounds: to which image, which page, and whether it writes it or gives it up.
DEEDS = st.lists(st.tuples(st.sampled_from(sorted(NAMES)), st.integers(0, 12), st.booleans()), max_size=12)
ROUNDS = st.lists(st.tuples(DEEDS, st.sets(st.sampled_from(sorted(NAMES)))), min_size=1, max_size=6)
ONE, TWO = sorted(NAMES)


@given(rounds=ROUNDS)
@example(rounds=[([(ONE, 0, True), (ONE, 1, True)], set()), ([(ONE, 0, False)], set()), ([(ONE, 0, True)], set())])
@example(rounds=[([(ONE, 5, True)], {TWO}), ([(TWO, 5, True)], set()), ([(ONE, 6, True)], {TWO}), ([], set())])
def test_what_criu_reads_at_the_end_is_the_memory(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[tuple[list[tuple[int, int, bool]], set[int]]]
) -> None:
    directory = tmp_path_factory.mktemp("images")
    store = PageStore(directory, PAGE, LIMIT_BYTES, encode_pagemap)
    tasks: dict[int, Task] = {}
    count = 0
    for deeds, ended in rounds:
        for image in NAMES:
            if image in ended:
                tasks.pop(image, None)
            else:
                tasks.setdefault(image, Task())
        for image, number, writes in deeds:
            if (task := tasks.get(image)) is None:
                continue
            task.sent.discard(number)
            if writes:
                count += 1
                task.memory[number] = count.to_bytes(PAGE, "little")
            else:
                task.memory.pop(number, None)
        received = send_round(store, tasks)
        assert {image.pagemap_name for image in received.images} == {NAMES[image] for image in tasks}
        for image, task in tasks.items():
            there = {number * PAGE: content for number, content in task.memory.items()}
            assert dict(read_pages(directory, NAMES[image], PAGE)) == there
            (found,) = (each for each in received.images if each.pagemap_name == NAMES[image])
            with PlacedReader(found, PAGE) as reader:
                for placed in found.placed:
                    numbers = range(placed.address // PAGE, placed.address // PAGE + placed.pages)
                    content = reader.read(((placed.address, placed.pages * PAGE),))
                    assert content == b"".join(task.memory[number] for number in numbers)
            assert sum(placed.pages for placed in found.placed) == len(task.memory)
            assert {at + number * PAGE for at, pages in found.arrived for number in range(pages)} == task.came
        assert received.page_bytes == sum(len(task.memory) for task in tasks.values()) * PAGE
    store.close()


def test_a_page_that_comes_again_takes_no_more_room(tmp_path: Path) -> None:
    store = PageStore(tmp_path, PAGE, 8 * PAGE, encode_pagemap)
    task = Task(dict.fromkeys(range(8), b"x" * PAGE))
    for _ in range(5):
        task.sent.clear()
        send_round(store, {ONE: task})
    assert sum(path.stat().st_size for path in tmp_path.rglob("pages-*.img")) == 8 * PAGE
    assert len(list(tmp_path.rglob("parent"))) == 1, "one chain link is enough for rounds that bring nothing new"
    task.memory[9] = b"y" * PAGE
    with pytest.raises(TransferError, match="larger than"):
        send_round(store, {ONE: task})
    store.close()


@pytest.mark.parametrize(
    ("flags", "address", "pages", "says"),
    [
        (PageFlag.PARENT, 3 * PAGE, 1, "never came"),
        (PageFlag.PARENT, 0, 3, "never came"),
        (PageFlag.PRESENT, 1, 1, "out of their order"),
        (PageFlag.PRESENT, 0, 0, "out of their order"),
        (PageFlag.PRESENT, 0, 2**62, "out of their order"),
        (PageFlag.PARENT, 2**64 - PAGE, 2, "out of their order"),
    ],
)
def test_what_no_dump_says_is_refused(tmp_path: Path, flags: int, address: int, pages: int, says: str) -> None:
    store = PageStore(tmp_path, PAGE, LIMIT_BYTES, encode_pagemap)
    send_round(store, {ONE: Task({0: b"x" * PAGE, 1: b"y" * PAGE})})
    store.begin_round()
    store.open(ONE, NAMES[ONE])
    with pytest.raises(TransferError, match=says):
        list(store.add(ONE, address, pages, flags))
    store.close()


def test_runs_must_ascend(tmp_path: Path) -> None:
    store = PageStore(tmp_path, PAGE, LIMIT_BYTES, encode_pagemap)
    store.begin_round()
    store.open(ONE, NAMES[ONE])
    list(store.add(ONE, PAGE, 1, PageFlag.PRESENT))
    with pytest.raises(TransferError, match="out of their order"):
        list(store.add(ONE, 0, 1, PageFlag.PRESENT))
    store.close()


def test_starting_over_leaves_nothing_of_the_rounds_before(tmp_path: Path) -> None:
    store = PageStore(tmp_path, PAGE, LIMIT_BYTES, encode_pagemap)
    task = Task({0: b"x" * PAGE})
    send_round(store, {ONE: task})
    task.memory[1] = b"y" * PAGE
    send_round(store, {ONE: task})
    store.close()
    forget_rounds(tmp_path)
    assert list(tmp_path.iterdir()) == []
    task.sent.clear()
    store = PageStore(tmp_path, PAGE, LIMIT_BYTES, encode_pagemap)
    send_round(store, {ONE: task})
    assert dict(read_pages(tmp_path, NAMES[ONE], PAGE)) == {0: b"x" * PAGE, PAGE: b"y" * PAGE}
    store.close()
