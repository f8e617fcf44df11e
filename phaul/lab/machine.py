"""What this machine must have for a lab.

Called by `phaul.lab.cluster` before anything is made, and by the tests to say why they skip. Only looks.
"""

from __future__ import annotations

import os
from pathlib import Path

from phaul.errors import LabError, UsageError

_NAMESPACES = ("mnt", "pid", "net", "uts", "ipc", "cgroup")


def missing() -> str:
    """Why there can be no lab on this machine, as one sentence; "" when there can."""
    if os.geteuid() != 0:
        return "The lab makes namespaces and mounts, for which one has to be root."
    absent = [name for name in _NAMESPACES if not Path(f"/proc/self/ns/{name}").exists()]
    if absent:
        return f"This kernel has no {absent[0]} namespaces."
    if not Path("/proc/sys/kernel/ns_last_pid").exists():
        return "This kernel was built without CONFIG_CHECKPOINT_RESTORE, which CRIU needs."
    return ""


def check() -> None:
    """Raise when there can be no lab on this machine."""
    if os.geteuid() != 0:
        raise UsageError(missing(), hint="Run it again as root.")
    reason = missing()
    if reason:
        raise LabError(reason)
