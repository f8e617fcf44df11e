"""A child whose first thread has ended while another goes on."""
# answer: refused leader_ended

import threading
import time

from .life import C, child, live, sleep_on


def lead() -> None:
    threading.Thread(target=sleep_on).start()
    C.syscall(60, 0)  # exit, of this thread alone


child(lead)
time.sleep(0.1)
live()
