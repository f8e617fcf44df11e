"""CRIU's image files, as far as phaul writes or reads them itself. Used by `transfer` through `agent.wiring`, and here.

An image starts with one or two 32-bit magics (CRIU 4.2, criu/include/magic.h), then records: a 32-bit length and a
protobuf message, all little-endian. `pages-N.img` has neither: it is the bare pages in the order of its pagemap.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from phaul.errors import PhaulError
from phaul.rpc.criu import images_pb2

COMMON_MAGIC = 0x54564319  # IMG_COMMON_MAGIC: what every image but the service ones starts with
SERVICE_MAGIC = 0x55105940  # IMG_SERVICE_MAGIC: statistics
PAGEMAP_MAGIC = 0x56084025
MEMORY_MAP_MAGIC = 0x57492820
STATISTICS_MAGIC = 0x57093306

U32 = struct.Struct("<I")
U32_MAX = (1 << 32) - 1


class ImageError(PhaulError):
    """An image file is not what CRIU writes."""


def encode_image(magics: Iterable[int], records: Iterable[Message]) -> bytes:
    """Give the bytes of an image file."""
    parts = [U32.pack(magic) for magic in magics]
    for record in records:
        data = record.SerializeToString()
        parts += (U32.pack(len(data)), data)
    return b"".join(parts)


def decode_records(data: bytes, magics: tuple[int, ...]) -> Iterator[bytes]:
    """Give the records of an image one by one. Raises `ImageError` on another magic or a record that is cut short."""
    head = struct.pack(f"<{len(magics)}I", *magics)
    if not data.startswith(head):
        raise ImageError(f"an image starts with {data[: len(head)].hex()} and not with {head.hex()}")
    position = len(head)
    while position < len(data):
        if position + U32.size > len(data):
            raise ImageError("an image ends in the middle of a record's length")
        (size,) = U32.unpack_from(data, position)
        position += U32.size
        if position + size > len(data):
            raise ImageError(f"an image ends {position + size - len(data)} bytes before its last record does")
        yield data[position : position + size]
        position += size


def encode_pagemap(pages_id: int, runs: Iterable[tuple[int, int, int]]) -> bytes:
    """Give a pagemap image.

    Args:
        pages_id: N of the pages-N.img that holds the pages.
        runs: (address, count of pages, PE_* flags) in the order in which the pages lie in that file.
    """
    head = images_pb2.PagemapHead(pages_id=pages_id)
    entries = (
        images_pb2.PagemapEntry(vaddr=address, compat_nr_pages=min(count, U32_MAX), flags=flags, nr_pages=count)
        for address, count, flags in runs
    )
    return encode_image((COMMON_MAGIC, PAGEMAP_MAGIC), (head, *entries))


def read_statistics(directory: Path, kind: str) -> images_pb2.Statistics | None:
    """Read `stats-dump` or `stats-restore` (`kind` is "dump" or "restore"); None when CRIU has not written one."""
    try:
        data = (directory / f"stats-{kind}").read_bytes()
        record = next(decode_records(data, (SERVICE_MAGIC, STATISTICS_MAGIC)), None)
        return images_pb2.Statistics.FromString(record) if record is not None else None
    except (FileNotFoundError, DecodeError, ImageError):
        return None


def image_files(directory: Path) -> list[Path]:
    """Give the image files of a directory in the order of their names; logs and statistics are not among them."""
    return sorted(path for path in directory.iterdir() if path.suffix == ".img" and path.is_file())
