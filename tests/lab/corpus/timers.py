"""An interval timer of each kind."""
# answer: moves

import signal

from .life import going_on, live

counts = {signal.SIGALRM: 0, signal.SIGVTALRM: 0, signal.SIGPROF: 0}


def count(number: int, _: object) -> None:
    counts[signal.Signals(number)] += 1


for number in counts:
    signal.signal(number, count)
for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
    signal.setitimer(timer, 0.01, 0.01)
live(going_on(lambda: counts[signal.SIGALRM]))
