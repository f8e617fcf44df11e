"""A timerfd that goes off every 10 ms, and counts the time asleep."""
# answer: moves

import os

from .life import going_on, live, timerfd

number = timerfd(7)
count = 0


def rung() -> int:
    global count
    try:
        count += int.from_bytes(os.read(number, 8), "little")
    except BlockingIOError:
        pass
    return count


live(going_on(rung))
