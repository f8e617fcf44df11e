"""A control group of its own, with a limit."""
# answer: moves

import os

from .life import live

os.makedirs("/sys/fs/cgroup/corpus", exist_ok=True)
with open("/sys/fs/cgroup/corpus/cgroup.procs", "w") as members:
    members.write("0")


def well() -> None:
    with open("/proc/self/cgroup") as groups:
        assert "0::/corpus\n" in groups.read()


live(well)
