"""The received pages of a migration, read back from where they lie and hashed, for the source to compare.

Called by `agent.server` for `migration.arrivals`. Of the first dump over a channel everything was hashed as it came; of
later ones only what came in them is, and what could not be told to be right so far.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from phaul.migration.page_images import HashedImage, PageImage, Runs, Segments
from phaul.system.task_memory import CHUNK_BYTES, blocks_of, digest, own_pages
from phaul.transfer.page_store import Placed, Received, ReceivedImage
from phaul.units import KIB

# After the first dump. A block is looked at again as a whole when any page of it was written meanwhile.
FINE_BYTES = 32 * KIB


def hashed(received: Received, pending: Sequence[PageImage], page_size_bytes: int) -> tuple[HashedImage, ...]:
    """Hash what came in the newest dump, and what else of `pending` is still there. Blocks; raises OSError."""
    left = {image.name: image.runs for image in pending}
    found: list[HashedImage] = []
    for image in received.images:
        if image.digests:
            found.append(HashedImage(image.pagemap_name, image.arrived, image.digests, CHUNK_BYTES))
            continue
        before = _present(image, left.get(image.pagemap_name, ()), page_size_bytes)
        before = subtract(before, image.arrived, page_size_bytes)
        with PlacedReader(image, page_size_bytes) as reader:
            for runs in filter(None, (image.arrived, before)):
                blocks = blocks_of(runs, page_size_bytes, FINE_BYTES)
                digests = tuple(digest(reader.read(segments)) for _, segments in blocks)
                found.append(HashedImage(image.pagemap_name, runs, digests, FINE_BYTES))
    return tuple(found)


def content(received: Received, name: str, runs: Runs, page_size_bytes: int) -> bytes:
    """Read a block back; nothing where it is not there. Blocks; raises OSError."""
    segments = tuple((address, pages * page_size_bytes) for address, pages in runs)
    if sum(size for _, size in segments) > CHUNK_BYTES:
        return b""
    for image in received.images:
        if image.pagemap_name == name:
            with PlacedReader(image, page_size_bytes) as reader:
                return bytes(reader.read(segments))
    return b""


class PlacedReader:
    """Reads blocks of an image from its files. Owns their descriptors, and the buffer: it is valid until the next."""

    def __init__(self, image: ReceivedImage, page_size_bytes: int) -> None:
        self._placed = image.placed
        self._page_size = page_size_bytes
        self._buffer = own_pages(CHUNK_BYTES)
        self._files = ExitStack()
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> PlacedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def read(self, segments: Segments) -> memoryview:
        """Give the content of a block, as far as it is there. Raises OSError where it cannot be read."""
        filled = 0
        for address, size in segments:
            for placed, start, count in _pieces(self._placed, address, size, self._page_size):
                done, offset = 0, placed.offset_bytes + start - placed.address
                while done < count:
                    read = os.preadv(
                        self._open(placed.path), [self._buffer[filled : filled + count - done]], offset + done
                    )
                    if not read:
                        raise OSError(0, f"{placed.path} ends before {offset + done:#x}")
                    done += read
                    filled += read
        return self._buffer[:filled]

    def _open(self, path: Path) -> int:
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._files.callback(os.close, self._descriptors[path])
        return self._descriptors[path]


def _pieces(placed: Sequence[Placed], address: int, size: int, page_size: int) -> Iterator[tuple[Placed, int, int]]:
    """Cut a range of memory along where its content lies: (where, from which address, bytes)."""
    end = address + size
    at = max(bisect_right(placed, address, key=lambda each: each.address) - 1, 0)
    while at < len(placed) and placed[at].address < end:
        here = placed[at]
        start, upto = max(address, here.address), min(end, here.address + here.pages * page_size)
        if start < upto:
            yield here, start, upto - start
        at += 1


def _present(image: ReceivedImage, runs: Runs, page_size: int) -> Runs:
    """The parts of `runs` that have content here."""
    return tuple(
        (start, count // page_size)
        for address, pages in runs
        for _, start, count in _pieces(image.placed, address, pages * page_size, page_size)
    )


def subtract(runs: Runs, away: Runs, page_size: int) -> Runs:
    """The parts of `runs` that are not in `away`."""
    found: list[tuple[int, int]] = []
    for address, pages in runs:
        end = address + pages * page_size
        at = max(bisect_right(away, address, key=lambda run: run[0]) - 1, 0)
        while address < end and at < len(away) and away[at][0] < end:
            start, upto = away[at][0], away[at][0] + away[at][1] * page_size
            if start > address:
                found.append((address, (start - address) // page_size))
            address = max(address, upto)
            at += 1
        if address < end:
            found.append((address, (end - address) // page_size))
    return tuple(found)
