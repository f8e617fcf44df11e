"""A timerfd that would wake the machine up."""
# answer: refused descriptor_kind

import os

from .life import going_on, live, timerfd

number = timerfd(8)
count = 0


def rung() -> int:
    global count
    try:
        count += int.from_bytes(os.read(number, 8), "little")
    except BlockingIOError:
        pass
    return count


live(going_on(rung))
