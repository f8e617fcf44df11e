"""A pidfd of the process itself."""
# answer: moves

import os
import signal

from .life import live

number = os.pidfd_open(os.getpid())
live(lambda: signal.pidfd_send_signal(number, 0))
