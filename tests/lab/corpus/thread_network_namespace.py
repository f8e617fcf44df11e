"""A thread that has gone to a network of its own, as container managers do."""
# answer: refused thread_apart

import threading
import time

from .life import NEW_NETWORK, live, sleep_on, unshare


def away() -> None:
    unshare(NEW_NETWORK)
    sleep_on()


threading.Thread(target=away).start()
time.sleep(0.1)
live()
