"""A process whose first thread has ended while another goes on."""
# answer: refused leader_ended
# life: headless

import threading
import time

from .life import C, live


def beat() -> None:
    time.sleep(0.2)
    live()


threading.Thread(target=beat).start()
C.syscall(60, 0)  # exit, of this thread alone
