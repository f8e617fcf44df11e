"""A child with mounts of its own."""
# answer: refused own_namespaces

import time

from .life import NEW_MOUNTS, child, live, sleep_on, unshare


def away() -> None:
    unshare(NEW_MOUNTS)
    sleep_on()


child(away)
time.sleep(0.1)
live()
