"""Images as CRIU writes and reads them. A few were written by CRIU itself, as the comments say."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.criu.images import (
    COMMON_MAGIC,
    PAGEMAP_MAGIC,
    SERVICE_MAGIC,
    STATISTICS_MAGIC,
    U32_MAX,
    ImageError,
    decode_records,
    encode_image,
    encode_pagemap,
    image_files,
    read_statistics,
)
from phaul.rpc.criu import images_pb2

PAGEMAP_MAGICS = (COMMON_MAGIC, PAGEMAP_MAGIC)
STATISTICS_MAGICS = (SERVICE_MAGIC, STATISTICS_MAGIC)

# Written by CRIU 4.2.1 for a `sleep`; of the pagemap, the head and the first three runs.
PAGEMAP_OF_CRIU = bytes.fromhex(
    "1943565425400856"
    "02000000"
    "0801"
    "0e000000"
    "088080f0bdf9ab1510002004"
    "2802"
    "0e000000"
    "088080f2bdf9ab1510002004"
    "2802"
    "0e000000"
    "0880c0cc99fdab1510002006"
    "2803"
)
STATISTICS_OF_CRIU = bytes.fromhex(
    "4059105506330957200000000a1e085010e90e188001202228393000381f4000480050065806600068007000"
)

ADDRESSES = st.integers(0, 2**47 // 4096).map(lambda page: page * 4096)
RUNS = st.lists(st.tuples(ADDRESSES, st.integers(1, 2**40), st.integers(0, 7)), max_size=20)


@given(st.integers(1, U32_MAX), RUNS)
def test_a_pagemap_says_what_was_put_in(pages_id: int, runs: list[tuple[int, int, int]]) -> None:
    head, *entries = decode_records(encode_pagemap(pages_id, runs), PAGEMAP_MAGICS)
    assert images_pb2.PagemapHead.FromString(head).pages_id == pages_id
    read = [images_pb2.PagemapEntry.FromString(entry) for entry in entries]
    assert [(entry.vaddr, entry.nr_pages, entry.flags) for entry in read] == runs
    # CRIU up to 4.1 reads the narrow count alone.
    assert all(entry.compat_nr_pages == min(entry.nr_pages, U32_MAX) for entry in read)


@given(RUNS, st.data())
def test_an_image_cut_short_is_refused_or_ends_between_records(
    runs: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    whole = encode_pagemap(1, runs)
    records = list(decode_records(whole, PAGEMAP_MAGICS))
    ends = [8]
    for record in records:
        ends.append(ends[-1] + 4 + len(record))
    cut = data.draw(st.integers(0, len(whole) - 1))
    if cut in ends:
        assert list(decode_records(whole[:cut], PAGEMAP_MAGICS)) == records[: ends.index(cut)]
    else:
        with pytest.raises(ImageError):
            list(decode_records(whole[:cut], PAGEMAP_MAGICS))


@given(st.binary(max_size=64))
def test_any_bytes_are_survived(data: bytes) -> None:
    for prefix in (b"", struct.pack("<2I", *PAGEMAP_MAGICS)):
        try:
            list(decode_records(prefix + data, PAGEMAP_MAGICS))
        except ImageError:
            pass  # what it is for


def test_another_image_is_refused() -> None:
    with pytest.raises(ImageError, match="starts with"):
        next(decode_records(encode_pagemap(1, ()), STATISTICS_MAGICS))


def test_a_pagemap_of_criu_holds_the_same_records() -> None:
    _, *entries = decode_records(PAGEMAP_OF_CRIU, PAGEMAP_MAGICS)
    theirs = [images_pb2.PagemapEntry.FromString(entry) for entry in entries]
    runs = [(entry.vaddr, entry.nr_pages, entry.flags) for entry in theirs]
    assert runs[0] == (0x555F97BC0000, 2, 4)
    assert len(runs) == 3
    # CRIU 4.2 leaves the narrow count at 0, which CRIU 4.1 could not restore; all else is the same to the byte.
    assert all(entry.compat_nr_pages == 0 for entry in theirs)
    _, *ours = decode_records(encode_pagemap(1, runs), PAGEMAP_MAGICS)
    for entry, their in zip(map(images_pb2.PagemapEntry.FromString, ours), theirs, strict=True):
        entry.compat_nr_pages = 0
        assert entry.SerializeToString() == their.SerializeToString()


def test_statistics_of_a_dump_are_read(tmp_path: Path) -> None:
    (tmp_path / "stats-dump").write_bytes(STATISTICS_OF_CRIU)
    found = read_statistics(tmp_path, "dump")
    assert found is not None
    assert (found.dump.pages_scanned, found.dump.pages_written) == (57, 31)
    assert found.dump.frozen_time > found.dump.memdump_time > found.dump.memwrite_time > 0


@pytest.mark.parametrize("content", [None, b"", b"\0" * 20, struct.pack("<2I", *STATISTICS_MAGICS)])
def test_statistics_that_are_not_there_are_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "stats-restore").write_bytes(content)
    assert read_statistics(tmp_path, "restore") is None


def test_statistics_that_are_damaged_are_none(tmp_path: Path) -> None:
    whole = encode_image(
        STATISTICS_MAGICS,
        [
            images_pb2.Statistics(
                restore=images_pb2.RestoreStatistics(
                    pages_compared=1, pages_skipped_cow=2, forking_time=3, restore_time=4
                )
            )
        ],
    )
    (tmp_path / "stats-restore").write_bytes(whole)
    found = read_statistics(tmp_path, "restore")
    assert found is not None
    assert found.restore.restore_time == 4
    (tmp_path / "stats-restore").write_bytes(whole[:-1])
    assert read_statistics(tmp_path, "restore") is None


def test_only_images_are_images(tmp_path: Path) -> None:
    for name in ("pages-1.img", "core-10.img", "dump.log", "stats-dump", "x.img.part"):
        (tmp_path / name).touch()
    (tmp_path / "directory.img").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["core-10.img", "pages-1.img"]
