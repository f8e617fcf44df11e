"""A control group that was frozen."""
# answer: refused frozen
# life: stopped

import os
import time

from .life import live, stranger

os.makedirs("/sys/fs/cgroup/frozen", exist_ok=True)


def freeze() -> None:
    time.sleep(0.3)
    with open("/sys/fs/cgroup/frozen/cgroup.freeze", "w") as switch:
        switch.write("1")


stranger(freeze)
with open("/sys/fs/cgroup/frozen/cgroup.procs", "w") as members:
    members.write("0")
live()
