"""Whether the control group of a process is frozen. Called by `workloads.snapshot`; only reads."""

from __future__ import annotations

from pathlib import Path

from phaul.system import procfs

_FREEZER = "freezer"


def is_frozen(pid: int) -> bool:
    """Say whether a process stands still because its group, or one above it, was frozen; False where not told."""
    for line in _read(procfs.PROC / str(pid) / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        kind = "cgroup2" if not controllers else "cgroup"
        if kind == "cgroup" and _FREEZER not in controllers.split(","):
            continue
        for mount in procfs.read_mounts(pid).values():
            group = Path(mount.mount_point) / path.lstrip("/")
            if mount.kind != kind:
                continue
            if "frozen 1" in _read(group / "cgroup.events") or _read(group / "freezer.state").strip() == "FROZEN":
                return True
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
