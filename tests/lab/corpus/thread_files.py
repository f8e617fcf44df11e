"""A thread with descriptors of its own."""
# answer: refused thread_apart

import os
import threading
import time

from .life import OWN_DESCRIPTORS, live, sleep_on, unshare


def away() -> None:
    unshare(OWN_DESCRIPTORS)
    os.open("/etc/hostname", os.O_RDONLY)
    sleep_on()


threading.Thread(target=away).start()
time.sleep(0.1)
live()
