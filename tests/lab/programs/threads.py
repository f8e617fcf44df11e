"""One process with many threads, each of which ticks: `threads.py CLIENT PORT THREADS`. Runs on a host.

The threads also pass a counter round under a condition, which is a futex in the kernel's eyes.
"""

from __future__ import annotations

import sys
import threading
import time

from .ticker import Ticker, new_instance

TICK_SECONDS = 0.01


class Round:
    """A counter that each thread may count up only when it is its turn."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._number = 0
        self._turn = threading.Condition()

    def take(self, index: int) -> None:
        """Wait for the turn of this thread and count."""
        with self._turn:
            self._turn.wait_for(lambda: self._number % self._count == index)
            self._number += 1
            self._turn.notify_all()


def main() -> None:
    """Start the threads and be one of them."""
    client, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    instance, turns = new_instance(), Round(count)

    def play(index: int) -> None:
        ticker = Ticker(client, port, instance, index)
        kept = threading.local()
        kept.identity, kept.work = threading.get_native_id(), 0
        while True:
            turns.take(index)
            kept.work += 1
            # What the thread keeps for itself, and how the kernel knows it, must both still be as they were.
            ticker.tick(kept.work, int(kept.identity != threading.get_native_id()))
            time.sleep(TICK_SECONDS)

    for index in range(1, count):
        threading.Thread(target=play, args=(index,), daemon=True).start()
    play(0)


if __name__ == "__main__":
    main()
