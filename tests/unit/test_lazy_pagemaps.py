"""Where the pages of a task lie that are loaded later: read from image directories as the receiver writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from phaul.criu.images import COMMON_MAGIC, MEMORY_MAP_MAGIC, ImageError, encode_image, encode_pagemap
from phaul.criu.lazy_ranges import Run
from phaul.criu.pagemaps import LazyPages
from phaul.rpc.criu import images_pb2
from phaul.system.memory import page_size_bytes

PAGE = page_size_bytes()
PID = 7
IN_PARENT, LAZY, PRESENT = 1, 2, 4


def directory(path: Path, *runs: tuple[int, int, int], mappings: tuple[tuple[int, int], ...] = ()) -> Path:
    """Write one level: (first page, count, flags) of the pagemap, (first page, end) of the mappings."""
    path.mkdir(parents=True)
    entries = [(first * PAGE, count, flags) for first, count, flags in runs]
    (path / f"pagemap-{PID}.img").write_bytes(encode_pagemap(3, entries))
    if mappings:
        vmas = [images_pb2.Mapping(start=start * PAGE, end=end * PAGE) for start, end in mappings]
        record = images_pb2.MemoryMap(vmas=vmas)
        (path / f"mm-{PID}.img").write_bytes(encode_image((COMMON_MAGIC, MEMORY_MAP_MAGIC), [record]))
    return path


def run(start: int, end: int, file: int, offset: int) -> Run:
    return Run(start * PAGE, end * PAGE, file, offset * PAGE)


def test_counts_what_is_not_lazy_and_cuts_at_mappings(tmp_path: Path) -> None:
    images = directory(
        tmp_path / "i",
        (1, 2, PRESENT),
        (10, 6, PRESENT | LAZY),
        (20, 1, PRESENT | LAZY),
        mappings=((1, 3), (10, 12), (12, 15), (15, 30)),
    )
    lazy = LazyPages(images)
    assert lazy.runs(PID) == [run(10, 12, 0, 2), run(12, 15, 0, 4), run(15, 16, 0, 7), run(20, 21, 0, 8)]
    assert lazy.files == [images / "pages-3.img"]


def test_follows_parents_of_parents(tmp_path: Path) -> None:
    oldest = directory(tmp_path / "1", (8, 2, PRESENT), (10, 10, PRESENT | LAZY))
    middle = directory(tmp_path / "2", (10, 3, IN_PARENT), (13, 2, PRESENT | LAZY), (15, 5, IN_PARENT))
    last = directory(
        tmp_path / "3", (11, 1, PRESENT | LAZY), (12, 7, IN_PARENT | LAZY), (19, 1, IN_PARENT), mappings=((0, 40),)
    )
    (middle / "parent").symlink_to(oldest)
    (last / "parent").symlink_to(middle)
    lazy = LazyPages(last)
    found = lazy.runs(PID)
    names = {number: path.parent.resolve().name for number, path in enumerate(lazy.files)}
    assert [(each.start // PAGE, each.end // PAGE, names[each.file], each.offset // PAGE) for each in found] == [
        (11, 12, "3", 0),
        (12, 13, "1", 4),
        (13, 15, "2", 0),
        (15, 19, "1", 7),
    ]


def test_a_page_that_no_parent_has_is_an_error(tmp_path: Path) -> None:
    oldest = directory(tmp_path / "1", (10, 2, PRESENT | LAZY))
    last = directory(tmp_path / "2", (10, 3, IN_PARENT | LAZY), mappings=((0, 40),))
    (last / "parent").symlink_to(oldest)
    with pytest.raises(ImageError):
        LazyPages(last).runs(PID)
