"""A workload that talks to a server.py: `talker.py CLIENT TICK_PORT OWN_ADDRESS ADDRESS PORT` sends block after block.

Each tick tells how many blocks the server has acknowledged, and whether anything went wrong.
"""

from __future__ import annotations

import socket
import sys
import time

from .blocks import Blocks, BrokenStreamError
from .ticker import Ticker, new_instance

PAUSE_SECONDS = 0.003


def main() -> None:
    """Talk for ever."""
    client, tick_port, own, address, port = sys.argv[1:6]
    ticker = Ticker(client, int(tick_port), new_instance())
    blocks = Blocks("client", "server")
    connection = socket.create_connection((address, int(port)), source_address=(own, 0))
    connection.setblocking(False)
    rest, errors = b"", 0
    while True:
        rest = rest or (blocks.next() if blocks.sent - blocks.acknowledged < 64 else b"")
        try:
            rest = rest[connection.send(rest) :] if rest else b""
        except BlockingIOError:
            pass
        except OSError:
            errors += 1
        try:
            data = connection.recv(1 << 16)
            errors += not data
            blocks.feed(data)
        except BlockingIOError:
            pass
        except (OSError, BrokenStreamError):
            errors += 1
        ticker.tick(blocks.acknowledged, errors)
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
