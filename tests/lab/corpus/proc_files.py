"""Files of the kernel that tell of the process and of the machine."""
# answer: moves

import os

from .life import live

own = os.open("/proc/self/status", os.O_RDONLY)
machine = os.open("/proc/meminfo", os.O_RDONLY)
setting = os.open("/proc/sys/kernel/hostname", os.O_RDONLY)


def well() -> None:
    assert b"python" in os.pread(own, 99, 0)
    assert b"MemTotal" in os.pread(machine, 99, 0)


live(well)
