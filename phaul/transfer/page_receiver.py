"""The destination's end of the page channel: CRIU's dump talks straight to it, into files that stock CRIU restores.

Runs in a thread of its own (`agent.page_listener` starts it), because it copies gigabytes. CRIU's own page server
splices into 4 KiB tmpfs pages; `page_store` grows each file ahead of the data, so that tmpfs gives it huge pages.
Receiving into a buffer and writing it out is as fast as splice(2) or a mapping of the file (9 GB/s over loopback,
kernel 6.18), and a full tmpfs is an error there where a mapping would be SIGBUS. Where the file has its pages already
(`spare_room`), it is received straight into the mapping: one copy less, and nothing to clear.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol

from phaul.errors import TransferError
from phaul.system.task_memory import RunningDigests, own_pages
from phaul.transfer import page_protocol
from phaul.transfer.page_protocol import Command, Header
from phaul.transfer.page_store import PageStore, Received
from phaul.units import MIB

BUFFER_BYTES = 1 * MIB  # of a large run, waited for as a whole: what comes by itself is a few KiB each time


class Connection(Protocol):
    """A connected socket, or what reads like one: `page_stream.PageStream`."""

    def recv_into(self, buffer: memoryview, *, flags: int = 0) -> int:
        """Receive at least a byte, with MSG_WAITALL rather all, 0 at the end. May raise `TransferError` and OSError."""
        ...

    def sendall(self, data: bytes, /) -> None:
        """Send all of it."""
        ...

    def shutdown(self, how: int, /) -> None:
        """Break it."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class PageReceiver:
    """Takes the pages of one dump after the other from a connected socket into a store.

    Each dump is a round: CRIU ends it with a command of its own and leaves the connection, which is not its, open. Owns
    the socket and the store until `receive` returns. `abort` may be called from another thread at any time.

    Args:
        on_round: called in the receiving thread as a round has come, before CRIU is told so.
    """

    def __init__(
        self,
        connection: Connection,
        store: PageStore,
        page_size_bytes: int,
        on_round: Callable[[Received], None],
    ) -> None:
        self._socket = connection
        self._store = store
        self._page_size = page_size_bytes
        self._on_round = on_round
        self._buffer = own_pages(BUFFER_BYTES)
        self._have = self._buffer[:0]  # received and not yet used
        self._layout = page_protocol.HEADER_BEFORE_4_2  # the shorter one, until the first header tells
        self._begun = False
        self._rounds = 0
        self._digests: dict[int, RunningDigests] = {}  # of the first round: later ones change what has come

    def abort(self) -> None:
        """Make `receive` fail soon."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is down already

    def receive(self) -> None:
        """Receive round after round, until the source closes the channel between two of them.

        Blocks. Raises `TransferError` when the channel breaks in the middle of one, the peer speaks something else, or
        the room is used up; files may then be left half-written in the directory.
        """
        try:
            while (header := self._first_header()) is not None:
                self._receive_round(header)
        except OSError as error:
            raise TransferError(f"the page channel failed: {error.strerror or error}") from error
        finally:
            self._store.close()
            self._have = self._buffer = memoryview(b"")  # who remembers this migration need not keep a megabyte
            self._socket.close()

    def _receive_round(self, header: Header) -> None:
        self._store.begin_round()
        self._rounds += 1
        while header.command not in (Command.CLOSE, Command.FORCE_CLOSE):
            self._obey(header)
            header = self._header()
        digests = {image: running.digests() for image, running in self._digests.items()}
        self._digests.clear()
        self._on_round(self._store.end_round(digests))
        self._socket.sendall(page_protocol.STATUS.pack(0))

    def _obey(self, header: Header) -> None:
        match header.command:
            case Command.OPEN2:
                has_parent = self._store.open(header.image, _pagemap_name(header))
                self._socket.sendall(page_protocol.HAS_PARENT if has_parent else page_protocol.HAS_NO_PARENT)
            case Command.PARENT:
                self._socket.sendall(page_protocol.STATUS.pack(self._store.has_parent(header.image)))
            case Command.ADD_F:
                running = None
                if self._rounds == 1 and header.has_pages:
                    running = self._digests.setdefault(header.image, RunningDigests())
                address = header.address
                for piece in self._store.add(header.image, header.address, header.pages, header.flags):
                    self._take(*piece, address, running)
                    address += piece[2]
            case _:
                raise TransferError(f"the page channel brought an unknown command {header.command:#x}")

    def _take(self, descriptor: int, offset: int, count: int, address: int, running: RunningDigests | None) -> None:
        """Write the next `count` bytes of the channel to where they belong, and hash them while they are at hand."""
        while count:
            window = self._store.window(descriptor, offset, min(count, BUFFER_BYTES))
            if window is not None and not self._have:
                here = window[: self._socket.recv_into(window, flags=socket.MSG_WAITALL)]
                if not here:
                    raise TransferError("the page channel was closed in the middle of the memory")
            else:
                if not self._have:
                    self._receive_more("in the middle of the memory", count)
                here = self._have[:count]
                if window is not None and len(here) <= len(window):
                    window[: len(here)] = here
                else:
                    here = here[: os.pwrite(descriptor, here, offset)]
                self._have = self._have[len(here) :]
            if running is not None:
                running.feed(address, here)
                address += len(here)
            offset += len(here)
            count -= len(here)

    def _first_header(self) -> Header | None:
        """The header that begins a round; None where the channel was closed instead."""
        if not self._have and not self._more():
            if not self._begun:
                raise TransferError("the page channel was closed before its end")
            return None
        if not self._begun:
            self._need(self._layout.size)
            self._layout = page_protocol.header_format(self._have)
            self._begun = True
        return self._header()

    def _header(self) -> Header:
        self._need(self._layout.size)
        header = page_protocol.decode(self._have, self._layout)
        self._have = self._have[self._layout.size :]
        return header

    def _need(self, count: int) -> None:
        while len(self._have) < count:
            self._receive_more("before its end")

    def _receive_more(self, when: str, announced: int = 0) -> None:
        if not self._more(announced):
            raise TransferError(f"the page channel was closed {when}")

    def _more(self, announced: int = 0) -> bool:
        """Receive behind what is not used yet; False where the channel was closed.

        Where enough to fill the buffer is `announced`, that is waited for.
        """
        left = len(self._have)
        self._buffer[:left] = bytes(self._have)
        flags = socket.MSG_WAITALL if announced >= BUFFER_BYTES - left else 0
        received = self._socket.recv_into(self._buffer[left:], flags=flags)
        self._have = self._buffer[: left + received]
        return received > 0


def _pagemap_name(header: Header) -> str:
    try:
        return header.pagemap_name
    except ValueError as error:
        raise TransferError(f"the page channel opened an image of unknown kind {header.image:#x}") from error
