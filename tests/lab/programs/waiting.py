"""Clients that only wait: `waiting.py ADDRESS PORT [ADDRESS PORT]...` connects to each, says nothing, notes its end.

Runs on the client. Says `connected` once all connections are there. To each line of its input it answers with one line
of JSON: what ended each connection, "" while it is there, and when, on the monotonic clock. Ends with its input.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import sys
import time

CONNECT_SECONDS = 20.0
READ_BYTES = 1 << 16


class Waiter:
    """One connection and what became of it."""

    def __init__(self, address: str, port: int) -> None:
        self.socket = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
        self.socket.setblocking(False)
        self.end = ""
        self.at = 0.0

    def look(self) -> bool:
        """Take in what came; say whether the connection goes on."""
        try:
            if self.socket.recv(READ_BYTES):
                return True
            self.end = "EOF"
        except BlockingIOError:
            return True
        except OSError as error:
            self.end = errno.errorcode[error.errno or 0]
        self.at = time.monotonic()
        return False


def main() -> None:
    """Wait for ever."""
    words = sys.argv[1:]
    waiters = [Waiter(address, int(port)) for address, port in zip(words[::2], words[1::2], strict=True)]
    print("connected", flush=True)
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    for waiter in waiters:
        selector.register(waiter.socket, selectors.EVENT_READ, waiter)
    while True:
        for key, _ in selector.select():
            if isinstance(key.data, Waiter):
                if not key.data.look():
                    selector.unregister(key.data.socket)
            elif not sys.stdin.readline():
                return
            else:
                print(json.dumps([(each.end, each.at) for each in waiters]), flush=True)


if __name__ == "__main__":
    main()
