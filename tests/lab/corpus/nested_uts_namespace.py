"""A child with a host name of its own."""
# answer: refused own_namespaces

import time

from .life import NEW_UTS, child, live, sleep_on, unshare


def away() -> None:
    unshare(NEW_UTS)
    sleep_on()


child(away)
time.sleep(0.1)
live()
