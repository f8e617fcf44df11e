"""Signals that wait, for the process and for a thread, one of them with a value."""
# answer: moves

import os
import signal
import threading

from .life import live

signals = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN + 3}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
os.kill(os.getpid(), signal.SIGUSR1)
signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
os.kill(os.getpid(), signal.SIGRTMIN + 3)


def well() -> None:
    assert signal.sigpending() == signals


live(well)
