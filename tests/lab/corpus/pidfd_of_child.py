"""A pidfd of a process of the tree."""
# answer: moves

import os
import signal

from .life import child, live

number = os.pidfd_open(child())
live(lambda: signal.pidfd_send_signal(number, 0))
