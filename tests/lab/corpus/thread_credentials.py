"""A thread that works for another user, as file servers have it."""
# answer: moves

import threading
import time

from .life import live, sleep_on, syscall


def away() -> None:
    syscall(122, 1234)  # setfsuid
    sleep_on()


thread = threading.Thread(target=away)
thread.start()
time.sleep(0.1)


def well() -> None:
    with open(f"/proc/self/task/{thread.native_id}/status") as status:
        assert next(line for line in status if line.startswith("Uid")).split()[4] == "1234"


live(well)
