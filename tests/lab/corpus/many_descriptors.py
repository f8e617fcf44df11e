"""Thousands of descriptors."""
# answer: moves

import os
import resource

from .life import live

resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
numbers = [os.open("/dev/null", os.O_RDWR) for _ in range(3000)]
live(lambda: os.write(numbers[-1], b"x"))
