"""A device that was not opened, only found (O_PATH)."""
# answer: refused device

import os

from .life import live

number = os.open("/dev/net/tun", os.O_PATH)
live()
