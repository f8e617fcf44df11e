"""What this machine must have for a lab.

Called by `phaul.lab.cluster` before anything is made, and by the tests to say why they skip. Only looks.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from phaul.errors import LabError, UsageError
from phaul.lab.records import USUAL_SIZE, MachineSize

QEMU_MIB = 512  # beside what a virtual machine has

_NAMESPACES = ("mnt", "pid", "net", "uts", "ipc", "cgroup")


def missing(*, virtual: bool = False, size: MachineSize = USUAL_SIZE) -> str:
    """Why there can be no lab on this machine, as one sentence; "" when there can.

    `virtual`: of two virtual machines, each of that size.
    """
    if os.geteuid() != 0:
        return "The lab makes namespaces and mounts, for which one has to be root."
    absent = [name for name in _NAMESPACES if not Path(f"/proc/self/ns/{name}").exists()]
    if absent:
        return f"This kernel has no {absent[0]} namespaces."
    if not Path("/proc/sys/kernel/ns_last_pid").exists():
        return "This kernel was built without CONFIG_CHECKPOINT_RESTORE, which CRIU needs."
    if virtual and platform.machine() != "x86_64":
        return f"Virtual machines are emulated for x86-64 only; this is {platform.machine()}."
    if virtual and not Path("/dev/net/tun").exists():
        return "This machine has no /dev/net/tun, with which virtual machines are joined."
    needed = 2 * (size.memory_mib + QEMU_MIB)
    if virtual and (memory := memory_mib()) < needed:
        return f"Two virtual machines need {needed} MiB of memory; {memory} are free."
    return ""


def memory_mib() -> int:
    """How much memory is to be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable:"))


def check(*, virtual: bool = False, size: MachineSize = USUAL_SIZE) -> None:
    """Raise when there can be no lab on this machine."""
    if os.geteuid() != 0:
        raise UsageError(missing(), hint="Run it again as root.")
    reason = missing(virtual=virtual, size=size)
    if reason:
        raise LabError(reason)
