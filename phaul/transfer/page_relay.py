"""Compresses or seals a dump on its way: CRIU writes into a TCP connection over loopback, the rest is done here.

CRIU takes a TCP socket and nothing else for its pages (criu#549), so what stands between it and the wire must look like
one. Made by `transfer.page_channel` for each dump that goes compressed or over a sealed wire; any other goes without.
Works in a thread of its own: nearly all of its time is spent in zstd, in AES and in the kernel, where other threads run
on.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading

from phaul.errors import TransferError
from phaul.system.task_memory import own_pages
from phaul.transfer.compression import FRAME_BYTES, Compressor
from phaul.transfer.wire import RECORD_BYTES, Wire
from phaul.units import KIB

REPLY_BYTES = 4 * KIB  # CRIU is answered in bytes, one or four at a time
LOOPBACK_CONGESTION = b"cubic"
END_SECONDS = 5.0  # for the thread to see that it is over; it never has more than a frame in hand


class PageRelay:
    """One dump's way from CRIU to the wire.

    Invariant: no byte is held back while CRIU waits; what has come goes out as soon as no more is there.
    When either side breaks, the other is broken as well. Owns a thread, which owns a copy of the wire's descriptor.
    """

    def __init__(self, wire: Wire, *, compress: bool) -> None:
        self.sent_bytes = 0  # content taken from CRIU
        self._over = False
        self._criu, self._ours = loopback_pair()
        self._wire = wire.dup()
        self._compressor = Compressor() if compress else None
        self._thread = threading.Thread(target=self._run, name="page relay", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """The socket for CRIU."""
        return self._criu.fileno()

    def end(self) -> None:
        """The dump is over: stop, and leave the wire as it is. Idempotent.

        Of a dump that was not over the rest is lost; the caller shuts the wire down before.
        """
        self._over = True
        _shut_down(self._criu)
        self._thread.join(END_SECONDS)
        self._criu.close()

    def _run(self) -> None:
        with self._ours, self._wire:
            try:
                self._relay()
            except (OSError, TransferError):
                pass  # one of the two broke, or an answer was not from the destination
            if not self._over:
                _shut_down(self._wire.socket)
            _shut_down(self._ours)

    def _relay(self) -> None:
        compressor = self._compressor
        reply = memoryview(bytearray(REPLY_BYTES))
        buffer = own_pages(FRAME_BYTES if compressor else RECORD_BYTES)
        self._ours.setblocking(False)
        waiting = select.poll()
        waiting.register(self._ours, select.POLLIN)
        waiting.register(self._wire.socket, select.POLLIN)
        while True:
            for descriptor, _ in waiting.poll():
                if descriptor == self._wire.socket.fileno():
                    if not (count := self._wire.recv_into(reply)):
                        return
                    self._ours.sendall(reply[:count])  # a few bytes into an empty buffer
                    continue
                filled, ended = self._take(buffer)
                if filled:
                    self.sent_bytes += filled  # before it can have arrived: who sees it there finds it counted
                    self._wire.sendall(compressor.frame(buffer[:filled]) if compressor else buffer[:filled])
                if ended:
                    return

    def _take(self, buffer: memoryview) -> tuple[int, bool]:
        """Take what CRIU has written, up to a full buffer; how much, and whether that was the end."""
        filled = 0
        while filled < len(buffer):
            try:
                received = self._ours.recv_into(buffer[filled:])
            except BlockingIOError:
                return filled, False
            if not received:
                return filled, True
            filled += received
        return filled, False


def loopback_pair() -> tuple[socket.socket, socket.socket]:
    """Give the two ends of a TCP connection within this process. Raises `TransferError` where loopback is down."""
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
            one = socket.create_connection(listener.getsockname())
            try:
                while True:
                    other, address = listener.accept()
                    if address == one.getsockname():  # somebody else on this host may have been quicker
                        break
                    other.close()
            except BaseException:
                one.close()
                raise
    except OSError as error:
        raise TransferError(
            f"there is no connection over loopback, which compression and encryption need: {error.strerror or error}",
            hint="Bring up the device lo, or see that nothing drops packets to 127.0.0.1.",
        ) from error
    for end in (one, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Loopback has no path to learn; bbr, which is the default of some, costs half there.
        with contextlib.suppress(OSError):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, LOOPBACK_CONGESTION)
    return one, other


def _shut_down(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other end was faster
