"""A thread that has another effective user than the others."""
# answer: moves

import threading
import time

from .life import live, sleep_on, syscall


def away() -> None:
    syscall(117, -1, 1234, -1)  # setresuid
    sleep_on()


thread = threading.Thread(target=away)
thread.start()
time.sleep(0.1)


def well() -> None:
    with open(f"/proc/self/task/{thread.native_id}/status") as status:
        assert next(line for line in status if line.startswith("Uid")).split()[2] == "1234"


live(well)
