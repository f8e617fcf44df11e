"""A child that leads a session, has ended, and was not waited for, while others are in its session."""
# answer: moves

import os
import time

from .life import child, live


def lead() -> None:
    os.setsid()
    child()


child(lead)
time.sleep(0.1)
live()
