"""A Redis that ticks: `ticking_redis.py CLIENT PORT ARGUMENT...` starts redis-server and ticks beside it.

One tree of two processes, which moves as a whole: the ticks say where it runs, and whether only once.
"""

from __future__ import annotations

import subprocess
import sys
import time

from .ticker import Ticker, new_instance

TICK_SECONDS = 0.005


def main() -> None:
    """Tick until Redis ends."""
    ticker = Ticker(sys.argv[1], int(sys.argv[2]), new_instance())
    redis = subprocess.Popen(["redis-server", *sys.argv[3:]])
    while redis.poll() is None:
        ticker.tick()
        time.sleep(TICK_SECONDS)


if __name__ == "__main__":
    main()
