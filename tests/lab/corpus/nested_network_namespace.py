"""A child with a network of its own."""
# answer: refused own_network_namespace

import time

from .life import NEW_NETWORK, child, live, sleep_on, unshare


def away() -> None:
    unshare(NEW_NETWORK)
    sleep_on()


child(away)
time.sleep(0.1)
live()
