"""What two hosts say to each other of the memory that went from one to the other: which pages, and their digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Runs = tuple[tuple[int, int], ...]  # (address, count of pages), ascending
Segments = tuple[tuple[int, int], ...]  # (address, size)


@dataclass(frozen=True, slots=True)
class PageImage:
    """Pages of one task, or of one piece of shared memory.

    `name` is the pagemap's file name: pagemap-PID.img or pagemap-shmem-INODE.img.
    """

    name: str
    runs: Runs


@dataclass(frozen=True, slots=True)
class HashedImage:
    """The same as they lie on the destination: XXH64 of each block, ascending.

    A block is what `runs` have between two multiples of `block_bytes`. An image may come in several of these.
    """

    name: str
    runs: Runs
    digests: tuple[bytes, ...]
    block_bytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """A block of an image whose content here and there was compared."""

    name: str
    runs: Runs


AheadOfImage = Mapping[int, tuple[Segments, bytes]]  # number of a block to what of it was hashed, and its digest
Ahead = Mapping[str, AheadOfImage]  # by image
