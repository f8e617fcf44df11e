"""CRIU's page-server protocol, as its own dump speaks it: headers, each followed by the pages that it announces.

Pure; used by `transfer.page_receiver` and by the fake engine. Read in criu/page-xfer.c. The header had 24 bytes up to
CRIU 4.1 and has 32 from 4.2 on, where the count of pages became a u64 (seen on the wire with 4.2.1). Neither says which
it is, but the first one always opens an image, and what it would have to say of that tells them apart.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

HEADER = struct.Struct("<I4xQQQ")  # command and flags, count of pages, address, image
HEADER_BEFORE_4_2 = struct.Struct("<IIQQ")
STATUS = struct.Struct("<i")
HAS_NO_PARENT = b"\0"
HAS_PARENT = b"\1"


class Command(IntEnum):
    """What a header asks for (PS_IOV_*)."""

    OPEN2 = 4  # begin an image; answered with one byte: whether there is a parent
    PARENT = 5  # whether there is a parent image; answered with an int
    ADD_F = 6  # a run of pages; with PRESENT, its pages follow
    CLOSE = 0x1023  # the end; answered with a status
    FORCE_CLOSE = 0x1024  # the end on a socket that others hold as well; answered with a status


class PageFlag(IntFlag):
    """Flags of a run of pages (PE_*)."""

    PARENT = 1
    LAZY = 2
    PRESENT = 4


class ImageKind(IntEnum):
    """Whose pages an image holds: the low byte of the header's last field."""

    TASK = 1
    SHARED_MEMORY = 2


@dataclass(frozen=True, slots=True)
class Header:
    """One command. `image` is CRIU's destination ID: kind in the low byte, a PID or shmid above."""

    command: int
    flags: int
    pages: int
    address: int
    image: int

    @property
    def has_pages(self) -> bool:
        """Whether pages follow this header."""
        return self.command == Command.ADD_F and bool(self.flags & PageFlag.PRESENT)

    @property
    def pagemap_name(self) -> str:
        """The pagemap image that this run belongs to. Raises ValueError for a kind that CRIU does not have."""
        kind, number = ImageKind(self.image & 0xFF), self.image >> 8
        return f"pagemap-{number}.img" if kind is ImageKind.TASK else f"pagemap-shmem-{number}.img"


def header_format(first: bytes | memoryview) -> struct.Struct:
    """Tell from the first 24 bytes of a channel which header it uses.

    They open an image: count and address are 0 and the image is not. In the older header the image is what the last
    8 bytes hold, in the newer one these are the address.
    """
    (last,) = struct.unpack_from("<Q", first, 16)
    return HEADER_BEFORE_4_2 if last else HEADER


def decode(data: bytes | bytearray | memoryview, layout: struct.Struct = HEADER) -> Header:
    """Read the header at the beginning of `data`."""
    word, pages, address, image = layout.unpack_from(data)
    return Header(word & 0xFFFF, word >> 16, pages, address, image)


def encode(header: Header, layout: struct.Struct = HEADER) -> bytes:
    """Give the bytes of a header."""
    return layout.pack(header.command | header.flags << 16, header.pages, header.address, header.image)


def task_image(pid: int) -> int:
    """The image field for the memory of a task."""
    return pid << 8 | ImageKind.TASK
