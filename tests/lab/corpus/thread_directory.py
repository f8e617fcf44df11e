"""A thread with a working directory of its own."""
# answer: refused thread_apart

import os
import threading
import time

from .life import OWN_DIRECTORIES, live, sleep_on, unshare


def away() -> None:
    unshare(OWN_DIRECTORIES)
    os.chdir("/tmp")
    sleep_on()


threading.Thread(target=away).start()
time.sleep(0.1)
live()
