"""A child that has ended and was not waited for."""
# answer: moves

import os
import time

from .life import child, live

pid = child(lambda: os._exit(7))
time.sleep(0.1)


def well() -> None:
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    assert ended and ended.si_status == 7


live(well)
