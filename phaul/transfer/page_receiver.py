"""The destination's end of the page channel: CRIU's dump talks straight to it, into files that stock CRIU restores.

Runs in a thread of its own (`agent.page_listener` starts it), because it copies gigabytes. CRIU's own page server
splices into 4 KiB tmpfs pages; this one grows each file ahead of the data, so that tmpfs gives it huge pages.
Receiving into a buffer and writing it out was as fast as splice(2) or a mapping of the file (9 GB/s over loopback,
kernel 6.18), and a full tmpfs is an error here where a mapping would be SIGBUS.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from phaul.errors import TransferError
from phaul.system.task_memory import own_pages
from phaul.transfer import page_protocol
from phaul.transfer.page_protocol import Command, Header, PageFlag
from phaul.units import MIB

BUFFER_BYTES = 1 * MIB
FIRST_GROWTH_BYTES = 1 * MIB  # below a huge page, so that a small task does not cost 2 MiB
LARGEST_GROWTH_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class ReceivedImage:
    """One image that has arrived. `runs` are (address, count of pages) of the pages in `pages_name`, in order."""

    pagemap_name: str
    pages_name: str
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Received:
    """Everything that one dump sent."""

    page_bytes: int
    images: tuple[ReceivedImage, ...]


PagemapEncoder = Callable[[int, Iterable[tuple[int, int, int]]], bytes]


@dataclass(slots=True)
class _PagesFile:
    """One pages-N.img under way and the runs for its pagemap. `size_bytes` is ahead of `written_bytes`."""

    pagemap_name: str
    pages_id: int
    fd: int
    written_bytes: int = 0
    size_bytes: int = 0
    runs: list[tuple[int, int, int]] = field(default_factory=list)

    def write(self, data: memoryview) -> None:
        end = self.written_bytes + len(data)
        while end > self.size_bytes:
            # within_size gives a huge page only where the file already covers it.
            growth = min(max(self.size_bytes, FIRST_GROWTH_BYTES), LARGEST_GROWTH_BYTES)
            self.size_bytes += growth
            os.ftruncate(self.fd, self.size_bytes)
        while self.written_bytes < end:
            done = os.pwrite(self.fd, data, self.written_bytes)
            self.written_bytes += done
            data = data[done:]


class PageReceiver:
    """Takes one dump's pages from a connected socket into a directory.

    Owns the socket and the files until `receive` returns. `abort` may be called from another thread at any time.
    """

    def __init__(
        self,
        connection: socket.socket,
        directory: Path,
        page_size_bytes: int,
        limit_bytes: int,
        encode_pagemap: PagemapEncoder,
    ) -> None:
        self._socket = connection
        self._directory = directory
        self._page_size = page_size_bytes
        self._limit_bytes = limit_bytes
        self._encode_pagemap = encode_pagemap
        self._buffer = own_pages(BUFFER_BYTES)
        self._have = self._buffer[:0]  # received and not yet used
        self._files: dict[int, _PagesFile] = {}
        self._layout = page_protocol.HEADER_BEFORE_4_2  # the shorter one, until the first header tells
        self.page_bytes = 0

    def abort(self) -> None:
        """Make `receive` fail soon."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is down already

    def receive(self) -> Received:
        """Receive until the dump closes the channel; give what came.

        Blocks. Raises `TransferError` when the channel breaks before its end, the peer speaks something else, or the
        room is used up; files may then be left half-written in the directory.
        """
        try:
            while (header := self._header()).command not in (Command.CLOSE, Command.FORCE_CLOSE):
                self._obey(header)
            images = tuple(map(self._finish, self._files.values()))
            self._socket.sendall(page_protocol.STATUS.pack(0))
            return Received(self.page_bytes, images)
        except OSError as error:
            raise TransferError(f"the page channel failed: {error.strerror or error}") from error
        finally:
            for file in self._files.values():
                os.close(file.fd)
            self._files.clear()
            self._have = self._buffer = memoryview(b"")  # who remembers this migration need not keep a megabyte
            self._socket.close()

    def _obey(self, header: Header) -> None:
        match header.command:
            case Command.OPEN2:
                self._open(header)
                self._socket.sendall(page_protocol.OPENED_WITHOUT_PARENT)
            case Command.PARENT:
                self._socket.sendall(page_protocol.OPENED_WITHOUT_PARENT)
            case Command.ADD_F:
                file = self._files.get(header.image)
                if file is None:
                    raise TransferError("the page channel brought pages of an image that was not opened")
                file.runs.append((header.address, header.pages, header.flags))
                if header.has_pages:
                    self._take_pages(file, header.pages * self._page_size)
            case _:
                raise TransferError(f"the page channel brought an unknown command {header.command:#x}")

    def _open(self, header: Header) -> None:
        if header.image in self._files:
            raise TransferError("the page channel opened the same image twice")
        try:
            name = header.pagemap_name
        except ValueError as error:
            raise TransferError(f"the page channel opened an image of unknown kind {header.image:#x}") from error
        pages_id = len(self._files) + 1
        path = self._directory / f"pages-{pages_id}.img"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._files[header.image] = _PagesFile(name, pages_id, os.open(path, flags, 0o600))

    def _take_pages(self, file: _PagesFile, count: int) -> None:
        if self.page_bytes + count > self._limit_bytes:
            raise TransferError(
                f"the workload's memory is larger than the {self._limit_bytes} bytes reserved on the destination",
                hint="It grew since preflight; try again.",
            )
        while count:
            if not self._have:
                self._receive_more("in the middle of the memory")
            data = self._have[:count]
            file.write(data)
            self._have = self._have[len(data) :]
            count -= len(data)
            self.page_bytes += len(data)

    def _header(self) -> Header:
        self._need(self._layout.size)
        if not self._files:
            self._layout = page_protocol.header_format(self._have)
            self._need(self._layout.size)
        header = page_protocol.decode(self._have, self._layout)
        self._have = self._have[self._layout.size :]
        return header

    def _need(self, count: int) -> None:
        while len(self._have) < count:
            self._receive_more("before its end")

    def _receive_more(self, when: str) -> None:
        left = len(self._have)
        self._buffer[:left] = bytes(self._have)
        received = self._socket.recv_into(self._buffer[left:])
        if received == 0:
            raise TransferError(f"the page channel was closed {when}")
        self._have = self._buffer[: left + received]

    def _finish(self, file: _PagesFile) -> ReceivedImage:
        os.ftruncate(file.fd, file.written_bytes)
        (self._directory / file.pagemap_name).write_bytes(self._encode_pagemap(file.pages_id, file.runs))
        runs = tuple((address, pages) for address, pages, flags in file.runs if flags & PageFlag.PRESENT)
        return ReceivedImage(file.pagemap_name, f"pages-{file.pages_id}.img", runs)
