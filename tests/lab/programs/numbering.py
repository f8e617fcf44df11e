"""The numbering client: `numbering.py ADDRESS PORT [ADDRESS PORT]...` exchanges numbered blocks over each connection.

Runs on the client. Reads commands from standard input: `report` prints one line of JSON (`brief`: with the last arrival
only, for exchanges that go on for long), `finish` first waits until every block that was sent is acknowledged and ends
then. Says `connected` once all connections are there.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import selectors
import socket
import sys
import time

from .blocks import BLOCK_BYTES, Blocks, BrokenStreamError

SEND_SECONDS = 0.003
CONNECT_SECONDS = 20.0
END_SECONDS = 2.0  # for the server to hear of it
FINISH_SECONDS = 40.0
READ_BYTES = 1 << 16


class Connection:
    """One connection and what became of it."""

    def __init__(self, address: str, port: int, window: int, slow: bool) -> None:
        self._socket = _connect(address, port)
        self._socket.setblocking(False)
        self._window = window
        self.slow = slow
        self._rest = b""
        self.blocks = Blocks("client", "server")
        self.arrivals: list[float] = []
        self.error = ""

    def fileno(self) -> int:
        """For the selector."""
        return self._socket.fileno()

    def send(self, *, more: bool) -> None:
        """Send what is left of the last block; and with `more` another one, if the window allows."""
        if more and not self._rest and self.blocks.sent - self.blocks.acknowledged < self._window:
            self._rest = self.blocks.next()
        if self._rest and not self.error:
            try:
                self._rest = self._rest[self._socket.send(self._rest) :]
            except BlockingIOError:
                pass
            except OSError as error:
                self._fail(error)

    def receive(self) -> None:
        """Take in what came."""
        try:
            data = self._socket.recv(BLOCK_BYTES if self.slow else READ_BYTES)
            if not data:
                self.error = "EOF"
            elif self.blocks.feed(data):
                self.arrivals.append(time.monotonic())
        except BlockingIOError:
            pass
        except (OSError, BrokenStreamError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        number = error.errno if isinstance(error, OSError) else None
        self.error = self.error or (errno.errorcode[number] if number else str(error))

    def report(self, *, brief: bool = False) -> dict[str, object]:
        """Say how it went so far."""
        blocks = self.blocks
        return {
            "error": self.error,
            "sent": blocks.sent,
            "acknowledged": blocks.acknowledged,
            "verified": blocks.verified,
            "arrivals": self.arrivals[-1:] if brief else self.arrivals,
        }

    def end(self) -> None:
        """Close it with nothing unread: the kernel would reset it then, and the server call that an error."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(END_SECONDS)
            while self._socket.recv(READ_BYTES):
                pass
        except OSError:
            pass  # broken before, or the server is busy
        self._socket.close()

    @property
    def settled(self) -> bool:
        """Whether all that was sent has been acknowledged, or never will be."""
        return bool(self.error) or (not self._rest and self.blocks.acknowledged == self.blocks.sent)


def _connect(address: str, port: int) -> socket.socket:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return socket.create_connection((address, port), timeout=CONNECT_SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def main() -> None:
    """Run until told to finish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--window", type=int, default=64, help="blocks that may be unacknowledged")
    parser.add_argument("--slow", action="store_true", help="read slower than the server sends")
    parser.add_argument("where", nargs="+")
    arguments = parser.parse_args()
    places = zip(arguments.where[::2], map(int, arguments.where[1::2]), strict=True)
    connections = [Connection(address, port, arguments.window, arguments.slow) for address, port in places]
    print("connected", flush=True)
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    for connection in connections:
        if not connection.slow:
            selector.register(connection, selectors.EVENT_READ, connection)
    finish_at: float | None = None
    brief = False
    send_at = time.monotonic()
    while True:
        now = time.monotonic()
        if now >= send_at:
            send_at = now + SEND_SECONDS
            for connection in connections:
                connection.send(more=finish_at is None)
                if connection.slow and not connection.error:
                    connection.receive()
            if finish_at is not None and (now > finish_at or all(each.settled for each in connections)):
                break
        for key, _ in selector.select(max(0.0, send_at - time.monotonic())):
            if isinstance(key.data, Connection):
                key.data.receive()
                if key.data.error:
                    selector.unregister(key.data)
                continue
            command = os.read(0, 100).decode()  # one at a time: the asker waits for the answer
            if command.startswith(("report", "brief")):
                brief = command.startswith("brief")
                print(json.dumps([each.report(brief=brief) for each in connections]), flush=True)
            else:
                brief = command.endswith("brief\n")
                finish_at = time.monotonic() + FINISH_SECONDS
                selector.unregister(sys.stdin)
                for connection in connections:
                    if connection.slow and not connection.error:
                        connection.slow = False
                        selector.register(connection, selectors.EVENT_READ, connection)
    for connection in connections:
        connection.end()
    print(json.dumps([each.report(brief=brief) for each in connections]), flush=True)


if __name__ == "__main__":
    main()
