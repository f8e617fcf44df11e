"""The page-server protocol's headers, in both of CRIU's formats."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.transfer.page_protocol import (
    HEADER,
    HEADER_BEFORE_4_2,
    Command,
    Header,
    ImageKind,
    PageFlag,
    decode,
    encode,
    header_format,
    task_image,
)
from tests.unit.page_sender import IMAGES

LAYOUTS = pytest.mark.parametrize("layout", [HEADER, HEADER_BEFORE_4_2], ids=["4.2", "before 4.2"])
U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))


@LAYOUTS
@given(command=U16, flags=U16, pages=U32, address=U64, image=U64)
def test_a_header_says_what_was_put_in(
    layout: struct.Struct, command: int, flags: int, pages: int, address: int, image: int
) -> None:
    header = Header(command, flags, pages, address, image)
    data = encode(header, layout)
    assert len(data) == layout.size
    assert decode(data, layout) == header
    assert decode(data + b"more", layout) == header


def test_the_formats_are_those_of_criu() -> None:
    """struct page_server_iov: u32, u32, u64, u64 up to CRIU 4.1; u32, u64, u64, u64 with 4 bytes of padding since."""
    header = Header(Command.ADD_F, PageFlag.PRESENT, 3, 0x7F0000001000, task_image(7))
    assert encode(header, HEADER_BEFORE_4_2) == struct.pack("<IIQQ", 0x40006, 3, 0x7F0000001000, 0x701)
    assert encode(header, HEADER) == struct.pack("<IIQQQ", 0x40006, 0, 3, 0x7F0000001000, 0x701)


@LAYOUTS
@given(image=IMAGES)
def test_the_first_header_tells_the_format(layout: struct.Struct, image: int) -> None:
    opening = encode(Header(Command.OPEN2, 0, 0, 0, image), layout)
    assert header_format(opening[:24]) is layout
    assert header_format(memoryview(opening)) is layout


@given(U16, U16)
def test_only_runs_that_are_present_bring_pages(command: int, flags: int) -> None:
    header = Header(command, flags, 1, 0, 0)
    assert header.has_pages is (command == 6 and flags & 4 != 0)


def test_an_image_is_named_after_its_task_or_its_shared_memory() -> None:
    assert Header(0, 0, 0, 0, task_image(4242)).pagemap_name == "pagemap-4242.img"
    assert Header(0, 0, 0, 0, 77 << 8 | ImageKind.SHARED_MEMORY).pagemap_name == "pagemap-shmem-77.img"
    with pytest.raises(ValueError, match="3"):
        _ = Header(0, 0, 0, 0, 77 << 8 | 3).pagemap_name
