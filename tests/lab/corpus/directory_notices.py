"""A directory that is watched in the old way (F_NOTIFY)."""
# answer: moves

import fcntl
import os
import signal

from .life import live

signal.signal(signal.SIGIO, signal.SIG_IGN)
number = os.open("/tmp", os.O_RDONLY)
fcntl.fcntl(number, fcntl.F_NOTIFY, fcntl.DN_CREATE | fcntl.DN_MULTISHOT)
live()
