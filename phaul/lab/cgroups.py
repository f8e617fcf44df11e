"""The control groups of a lab: one cgroup v2 group a host, and the way into it for processes that enter the host.

Called by `phaul.lab.host` and `phaul.lab.cluster`. Works without cgroup v2 too: then hosts have no `/sys/fs/cgroup`.
Never touches a group outside `phaul-lab` in the hierarchy, but for moving a process that enters a host beside that
host's PID 1.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

TOP_GROUP = "phaul-lab"
REMOVAL_DEADLINE_SECONDS = 5.0  # a group can be removed once the kernel has freed its killed processes


def unified_mount() -> Path | None:
    """Where the machine has its cgroup v2 hierarchy, None when nowhere."""
    for hierarchy, mount in _mounts().items():
        if hierarchy == "":
            return mount
    return None


def create(lab: str, host: str) -> Path | None:
    """Make a host's group, and hand it the machine's controllers; None where groups cannot be made."""
    mount = unified_mount()
    if mount is None:
        return None
    group = mount / TOP_GROUP / lab / host
    try:
        group.mkdir(parents=True)
    except OSError:
        return None
    for parent in (mount / TOP_GROUP, mount / TOP_GROUP / lab):
        try:
            controllers = (parent / "cgroup.controllers").read_text().split()
            (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
        except OSError:
            pass  # a host without controllers still has groups and their freezer
    return group


def remove(lab: str) -> None:
    """Kill what is left in the groups of a lab and remove them; does nothing where there are none."""
    mount = unified_mount()
    if mount is None:
        return
    top = mount / TOP_GROUP
    group = top / lab
    if group.is_dir():
        try:
            (group / "cgroup.kill").write_text("1")  # Linux 5.14; older kernels: PID 1's death has killed them already
        except OSError:
            pass
        _remove_tree(group)
    try:
        top.rmdir()
    except OSError:
        pass  # absent, or another lab's groups are in it


def procs_files_beside(pid: int) -> list[str]:
    """The `cgroup.procs` files to write a process into, so that it is in the groups of `pid`.

    Only those of hierarchies where we are elsewhere ourselves. Without this, a process that enters a host would stand
    outside the root of its cgroup namespace.
    """
    ours = _memberships(Path("/proc/self/cgroup"))
    mounts = _mounts()
    files = []
    for hierarchy, path in _memberships(Path(f"/proc/{pid}/cgroup")).items():
        mount = mounts.get(hierarchy)
        if mount is None or ours.get(hierarchy) == path:
            continue
        procs = f"{mount}{path.rstrip('/')}/cgroup.procs"
        if os.access(procs, os.W_OK):
            files.append(procs)
    return files


def _remove_tree(group: Path) -> None:
    deadline = time.monotonic() + REMOVAL_DEADLINE_SECONDS
    directories = [Path(directory) for directory, _, _ in os.walk(group, topdown=False)]
    for directory in directories:
        while True:
            try:
                directory.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    return  # whoever holds it is reported by the caller, which checks for what is left
                time.sleep(0.005)


def _memberships(file: Path) -> dict[str, str]:
    """Hierarchy (its controllers as listed, "" for v2) to the path in it."""
    pairs = (line.split(":", 2)[1:] for line in file.read_text().splitlines())
    return dict(pairs)


def _mounts() -> dict[str, Path]:
    """Hierarchy, named as in ``/proc/PID/cgroup``, to where its root is mounted."""
    found: dict[str, Path] = {}
    hierarchies = _memberships(Path("/proc/self/cgroup"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if root != "/":
            continue
        if kind == "cgroup2":
            found.setdefault("", Path(point))
        elif kind == "cgroup":
            given = set(options.split(","))
            for hierarchy in hierarchies:
                if hierarchy and set(hierarchy.split(",")) <= given:
                    found.setdefault(hierarchy, Path(point))
    return found
