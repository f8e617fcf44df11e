"""What two hosts say to each other of the memory that went from one to the other: which pages, and their digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PageImage:
    """The pages of one task, or of one piece of shared memory, as the destination received them.

    `name` is the pagemap's file name: pagemap-PID.img or pagemap-shmem-INODE.img. `runs` are (address, count of pages)
    in the order of arrival.
    """

    name: str
    runs: tuple[tuple[int, int], ...]


# Image to XXH3-128 of each of its blocks: what it has between two multiples of 128 KiB, ascending by address.
Digests = Mapping[str, tuple[bytes, ...]]
Segments = tuple[tuple[int, int], ...]  # (address, size)
AheadOfImage = Mapping[int, tuple[Segments, bytes]]  # number of a block to what of it was hashed, and its digest
Ahead = Mapping[str, AheadOfImage]  # by image
