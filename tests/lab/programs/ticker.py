"""Numbered ticks by UDP: how the outside sees that a workload runs, where, and whether only once.

Runs inside the hosts, as part of the other programs here or alone: `ticker.py CLIENT PORT [SLEEP_MS]` is the plainest
workload, one process with one thread. The socket is bound to no address, so that a tick comes from the host on which
the process runs.
"""

from __future__ import annotations

import os
import socket
import sys
import time


class Ticker:
    """One stream of ticks. Each carries who sends it, its number, how much was done so far and what went wrong."""

    def __init__(self, client: str, port: int, instance: str, stream: int = 0) -> None:
        self._target = (client, port)
        self._instance = instance
        self._stream = stream
        self._sequence = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def tick(self, work: int = 0, errors: int = 0) -> None:
        """Send the next tick; one that cannot be sent is a missing number at the other end."""
        self._sequence += 1
        text = f"{self._instance} {self._stream} {os.getpid()} {self._sequence} {work} {errors}"
        try:
            self._socket.sendto(text.encode(), self._target)
        except OSError as error:
            print(f"tick {self._sequence}: {error}", flush=True)


def new_instance() -> str:
    """Give a name that only this start of a program has, and that its copies share."""
    return os.urandom(6).hex()


def main() -> None:
    """Tick for ever."""
    ticker = Ticker(sys.argv[1], int(sys.argv[2]), new_instance())
    pause_seconds = int(sys.argv[3]) / 1000 if len(sys.argv) > 3 else 0.005
    while True:
        ticker.tick()
        time.sleep(pause_seconds)


if __name__ == "__main__":
    main()
