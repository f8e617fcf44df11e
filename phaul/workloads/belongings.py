"""What the processes of a workload belong to: users, control group, executable. For the policy; reads /proc only."""

from __future__ import annotations

from pathlib import Path

from phaul.migration.policy import Belonging
from phaul.system import credentials, procfs

DELETED = procfs.DELETED_SUFFIX


def of_tree(root_pid: int) -> tuple[Belonging, ...]:
    """Look at every process of a tree, the root first; none where it is gone. Blocks."""
    try:
        pids = procfs.walk_tree(root_pid)
    except OSError:
        return ()
    found = []
    for pid in pids:
        try:
            found.append(_of(pid))
        except OSError:
            if pid == root_pid:
                return ()
    return tuple(found)


def _of(pid: int) -> Belonging:
    # Real, effective, saved and file system's: of a process in between two users it is nobody's.
    user_ids = set(procfs.read_status(pid)["Uid"].split())
    (user_id,) = user_ids if len(user_ids) == 1 else ("",)
    owners = frozenset({user_id, credentials.user_name(int(user_id))} - {""}) if user_id else frozenset()
    return Belonging(pid, owners, _control_group(pid), _executable(pid))


def _control_group(pid: int) -> str:
    """Its path in the unified hierarchy, "" without one."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            return path
    return ""


def _executable(pid: int) -> str:
    """The path, if that is the file which runs: in a mount namespace of its own a process can show any path."""
    try:
        path = procfs.read_link(pid, "exe")
        if not path.endswith(DELETED) and Path(path).samefile(f"/proc/{pid}/exe"):
            return path
    except OSError:
        pass
    return ""
