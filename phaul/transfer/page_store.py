"""The pages of one migration on the destination: those of every round, in files that stock CRIU restores.

Owned by `transfer.page_receiver`. A round of pre-copy sends what was written since the round before. A page that comes
again is written over in place, so that the memory never lies here twice; a page that is new since the last round goes
into files of its own. What CRIU finds is one directory, or a short chain of them by their `parent` links: the newest
holds the pagemaps of the last round, and the files below hold whatever pages these call their parents' (CRIU 4.2,
criu/pagemap.c: entries ascend by address, and the pages of a file lie in the order of its pagemap's PRESENT entries).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from phaul.errors import TransferError
from phaul.transfer.page_protocol import PageFlag
from phaul.transfer.spare_room import SpareRoom
from phaul.units import MIB

FIRST_GROWTH_BYTES = 1 * MIB  # below a huge page, so that a small task does not cost 2 MiB
LARGEST_GROWTH_BYTES = 64 * MIB
LARGE_BYTES = 4 * MIB  # an image from which on it may have the spare room
ADDRESSES = 1 << 64
# What a source may make a destination keep beside the pages, whose bytes are reserved. No honest one comes near.
MOST_ROUNDS = 1000  # each may make a directory
MOST_FILES = 16_384  # each is an open descriptor
EXTENTS_MORE = 1024  # than the pages that fit into the room
PARENT_LINK = "parent"  # criu/include/servicefd.h: CR_PARENT_LINK

PagemapEncoder = Callable[[int, Iterable[tuple[int, int, int]]], bytes]


class Placed(NamedTuple):
    """Pages that follow each other in memory and in a file."""

    address: int
    pages: int
    path: Path
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class ReceivedImage:
    """One image that has arrived.

    `placed` are all pages that have content here, ascending; `arrived` are (address, count of pages) of those that came
    in the newest round. `digests` are those of the blocks of the latter, where they were hashed as they came.
    """

    pagemap_name: str
    placed: tuple[Placed, ...]
    arrived: tuple[tuple[int, int], ...]
    digests: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Received:
    """What one round leaves. `images` are all that there is by now; `page_bytes` is their content."""

    page_bytes: int
    images: tuple[ReceivedImage, ...]


class Extent(NamedTuple):
    """Pages that follow each other in memory and in a file. `level` counts the directories of the chain from 0."""

    address: int
    pages: int
    level: int
    offset_bytes: int
    flags: int


@dataclass(slots=True)
class _PagesFile:
    """One pages-N.img. `size_bytes` is ahead of `written_bytes` while it is the newest."""

    fd: int
    written_bytes: int = 0
    size_bytes: int = 0

    def grow(self, count: int) -> None:
        """Make room at the end. A huge page of tmpfs (huge=within_size) is given only where the file covers it."""
        end = self.written_bytes + count
        while end > self.size_bytes:
            self.size_bytes += min(max(self.size_bytes, FIRST_GROWTH_BYTES), LARGEST_GROWTH_BYTES)
            os.ftruncate(self.fd, self.size_bytes)


@dataclass(slots=True)
class _Image:
    """One image: its files by level, what the last round left, and what this one has said so far."""

    number: int  # N of its pages-N.img, the same at every level
    pagemap_name: str
    files: dict[int, _PagesFile] = field(default_factory=dict)
    before: list[Extent] = field(default_factory=list)
    now: list[Extent] = field(default_factory=list)
    arrived: list[tuple[int, int]] = field(default_factory=list)  # in this round: (address, count of pages)
    at: int = 0  # how far `before` was passed by this round's runs, which ascend
    opened: bool = False  # in this round
    existed: bool = False  # in the round before


class PageStore:
    """All pages that came over one page channel. Owns the files in `directory` until `close`.

    Args:
        directory: where the images go; empty, mode 0700.
        page_size_bytes: the source's.
        limit_bytes: how much the files may take together.
        encode_pagemap: makes a pagemap image of (address, count of pages, PE_* flags) runs.
        spare: for the first image that turns out to be large. The store closes it after the first round.
    """

    def __init__(
        self,
        directory: Path,
        page_size_bytes: int,
        limit_bytes: int,
        encode_pagemap: PagemapEncoder,
        spare: SpareRoom | None = None,
    ) -> None:
        self._spare = spare
        self._spare_fd = -1  # once an image has it
        self._directory = directory
        self._page_size = page_size_bytes
        self._limit_bytes = limit_bytes
        self._encode_pagemap = encode_pagemap
        self._images: dict[int, _Image] = {}
        self._level = 0
        self._rounds = 0
        self._stored_bytes = 0
        self._files = 0
        self._extents = 0  # of this round
        self._most_extents = limit_bytes // page_size_bytes + EXTENTS_MORE  # an extent has a page at least

    def begin_round(self) -> None:
        """What comes next belongs to another round."""
        if self._rounds >= MOST_ROUNDS:
            raise TransferError(f"the page channel brought more than {MOST_ROUNDS} rounds")
        self._extents = 0
        if self._rounds:
            if any(image.files[self._level].written_bytes for image in self._images.values() if self._here(image)):
                self._push_down()
            for image in self._images.values():
                image.before, image.now, image.arrived, image.at = image.now, [], [], 0
                image.existed, image.opened = image.opened, False
        self._rounds += 1

    def has_parent(self, image_id: int) -> bool:
        """Whether the round before had this image: only then may a run refer to it."""
        image = self._images.get(image_id)
        return image is not None and image.existed

    def open(self, image_id: int, pagemap_name: str) -> bool:
        """Begin an image in this round; say whether the round before had it."""
        image = self._images.get(image_id)
        if image is None:
            image = self._images[image_id] = _Image(len(self._images) + 1, pagemap_name)
        if image.opened:
            raise TransferError("the page channel opened the same image twice")
        image.opened = True
        if not image.existed:
            image.before = []
        if not self._here(image):
            if self._files >= MOST_FILES:
                raise TransferError(f"the page channel wants more than {MOST_FILES} files")
            self._files += 1
            path = self._directory / f"pages-{image.number}.img"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            image.files[self._level] = _PagesFile(os.open(path, flags, 0o600))
        return image.existed

    def add(self, image_id: int, address: int, pages: int, flags: int) -> Iterator[tuple[int, int, int]]:
        """Take in a run. Gives (descriptor, offset, bytes) of each piece that its content shall be written to, if any.

        Raises `TransferError` for a run that CRIU would not send, and where there is no room for it.
        """
        image = self._images.get(image_id)
        if image is None or not image.opened:
            raise TransferError("the page channel brought pages of an image that was not opened")
        end = address + pages * self._page_size
        if not pages or address % self._page_size or address < self._passed(image) or end > ADDRESSES:
            raise TransferError(f"the page channel brought pages out of their order, at {address:#x}")
        if flags & PageFlag.PRESENT:
            if image.arrived and image.arrived[-1][0] + image.arrived[-1][1] * self._page_size == address:
                image.arrived[-1] = (image.arrived[-1][0], image.arrived[-1][1] + pages)
            else:
                image.arrived.append((address, pages))
            return self._place(image, address, pages, flags)
        if flags & PageFlag.PARENT:
            for extent in self._pieces_before(image, address, pages):
                if extent.level < 0:
                    raise TransferError(f"the page channel refers to a page that never came, at {extent.address:#x}")
                self._note(image, extent)
        else:
            self._note(image, Extent(address, pages, -1, 0, flags))
        return iter(())

    def end_round(self, digests: Mapping[int, tuple[bytes, ...]] = MappingProxyType({})) -> Received:
        """The round is complete: write its pagemaps. What is in the directory can be restored from.

        `digests` are those of images, by their IDs, of which all the content came in this round.
        """
        self._close_spare()
        for image in self._images.values():
            if self._here(image):
                file = image.files[self._level]
                os.ftruncate(file.fd, file.written_bytes)
                file.size_bytes = file.written_bytes
            pagemap = self._directory / image.pagemap_name
            if image.opened:
                pagemap.write_bytes(self._encode_pagemap(image.number, self._pagemap(image)))
            else:
                pagemap.unlink(missing_ok=True)  # its task has ended since the round before
        images = tuple(
            self._received(each, digests.get(image_id, ())) for image_id, each in self._images.items() if each.opened
        )
        pages = sum(each.pages for image in images for each in image.placed)
        return Received(pages * self._page_size, images)

    def window(self, descriptor: int, offset: int, count: int) -> memoryview | None:
        """The memory behind a part of a file that `add` gave, where it can be received straight into it."""
        if self._spare is None or descriptor != self._spare_fd:
            return None
        return self._spare.window(offset, count)

    def close(self) -> None:
        """Close the files; they stay. Idempotent."""
        self._close_spare()
        for image in self._images.values():
            for file in image.files.values():
                os.close(file.fd)
            image.files.clear()

    def _close_spare(self) -> None:
        if self._spare is not None:
            self._spare.close()
        self._spare, self._spare_fd = None, -1

    def _here(self, image: _Image) -> bool:
        return self._level in image.files

    def _passed(self, image: _Image) -> int:
        """The address up to which this round has spoken."""
        if not image.now:
            return 0
        last = image.now[-1]
        return last.address + last.pages * self._page_size

    def _place(self, image: _Image, address: int, pages: int, flags: int) -> Iterator[tuple[int, int, int]]:
        """Where the pages of a run go: over those that came before, the rest to the end of the newest file."""
        for extent in list(self._pieces_before(image, address, pages)):
            count = extent.pages * self._page_size
            level, offset = extent.level, extent.offset_bytes
            file = image.files[self._level if level < 0 else level]
            if level < 0:
                if self._stored_bytes + count > self._limit_bytes:
                    raise TransferError(
                        f"the workload's memory is larger than the {self._limit_bytes} bytes reserved on the "
                        "destination",
                        hint="It grew since preflight; try again.",
                    )
                if self._spare is not None and self._spare_fd < 0 and file.written_bytes + count > LARGE_BYTES:
                    self._take_spare(image, file, self._spare)
                level, offset = self._level, file.written_bytes
                file.grow(count)
                file.written_bytes += count
                self._stored_bytes += count
            self._note(image, Extent(extent.address, extent.pages, level, offset, flags))
            yield file.fd, offset, count

    def _note(self, image: _Image, extent: Extent) -> None:
        """Remember part of a run. A source could else have a destination remember runs without pages for ever."""
        before = len(image.now)
        _append(image.now, extent, self._page_size)
        self._extents += len(image.now) - before
        if self._extents > self._most_extents:
            raise TransferError("the page channel brought more runs of pages than the workload has pages")

    def _take_spare(self, image: _Image, file: _PagesFile, spare: SpareRoom) -> None:
        """Have this image's file be the one that is filled already."""
        if not spare.ready:
            return
        fd = spare.take(self._directory / f"pages-{image.number}.img")
        os.pwrite(fd, os.pread(file.fd, file.written_bytes, 0), 0)
        os.close(file.fd)
        file.fd = self._spare_fd = fd
        file.size_bytes = spare.size_bytes

    def _pieces_before(self, image: _Image, address: int, pages: int) -> Iterator[Extent]:
        """Cut a run along what the round before left: where that had nothing, `level` is -1."""
        before, end = image.before, address + pages * self._page_size
        if not before:
            yield Extent(address, pages, -1, 0, 0)
            return
        image.at = max(image.at, bisect_right(before, address, lo=image.at, key=lambda each: each.address) - 1)
        at = image.at
        while address < end:
            while at < len(before) and before[at].address + before[at].pages * self._page_size <= address:
                at += 1
            there = before[at] if at < len(before) else None
            if there is None or there.address >= end:
                yield Extent(address, (end - address) // self._page_size, -1, 0, 0)
                return
            if there.address > address:
                yield Extent(address, (there.address - address) // self._page_size, -1, 0, 0)
                address = there.address
            upto = min(end, there.address + there.pages * self._page_size)
            offset = there.offset_bytes + (address - there.address)
            yield Extent(address, (upto - address) // self._page_size, there.level, offset, there.flags)
            address = upto

    def _pagemap(self, image: _Image) -> Iterator[tuple[int, int, int]]:
        """The runs of the newest directory's pagemap: its own pages, and those that the directories below have."""
        last: tuple[int, int, int] | None = None
        for extent in image.now:
            flags = extent.flags
            if 0 <= extent.level < self._level:
                # CRIU loads later what is marked LAZY here, wherever it lies (criu/mem.c: restore_priv_vma_content).
                flags = PageFlag.PARENT | flags & PageFlag.LAZY
            if last is not None and last[2] == flags and last[0] + last[1] * self._page_size == extent.address:
                last = (last[0], last[1] + extent.pages, flags)
                continue
            if last is not None:
                yield last
            last = (extent.address, extent.pages, int(flags))
        if last is not None:
            yield last

    def _received(self, image: _Image, digests: tuple[bytes, ...]) -> ReceivedImage:
        paths = {level: self._directory_of(level) / f"pages-{image.number}.img" for level in image.files}
        placed = tuple(
            Placed(extent.address, extent.pages, paths[extent.level], extent.offset_bytes)
            for extent in image.now
            if extent.level >= 0
        )
        return ReceivedImage(image.pagemap_name, placed, tuple(image.arrived), digests)

    def _directory_of(self, level: int) -> Path:
        return self._directory if level == self._level else self._directory / str(level)

    def _push_down(self) -> None:
        """Move what the newest directory has into one of its own, which becomes the parent of the next."""
        below = self._directory / str(self._level)
        below.mkdir(mode=0o700)
        for path in list(self._directory.iterdir()):
            if path.suffix == ".img":
                path.rename(below / path.name)
        link = self._directory / PARENT_LINK
        if self._level:
            link.unlink()
            (below / PARENT_LINK).symlink_to(f"../{self._level - 1}")
        link.symlink_to(str(self._level))
        self._level += 1


def _append(extents: list[Extent], new: Extent, page_size: int) -> None:
    """Add an extent, as one with the last where it goes on from that in memory and in the file."""
    if extents:
        last = extents[-1]
        size_bytes = last.pages * page_size
        if (
            last.level == new.level
            and last.flags == new.flags
            and last.address + size_bytes == new.address
            and (new.level < 0 or last.offset_bytes + size_bytes == new.offset_bytes)
        ):
            extents[-1] = last._replace(pages=last.pages + new.pages)
            return
    extents.append(new)


def forget_rounds(directory: Path) -> None:
    """Remove what a store has left in a directory: the page channel broke in a round, and the first one comes again."""
    for path in [*directory.rglob("pages-*.img"), *directory.rglob("pagemap-*.img"), *directory.rglob(PARENT_LINK)]:
        path.unlink(missing_ok=True)
    for path in directory.iterdir():
        if path.is_dir():
            path.rmdir()
