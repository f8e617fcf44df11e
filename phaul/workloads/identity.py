"""Which processes were meant, after an agent was restarted: by PID, start time and boot, never by PID alone.

Called by `workloads.process` for `migration.settlement`. `finish_kill` is the only thing here that touches a process.
"""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from phaul.errors import DumpError
from phaul.migration.interfaces import TreeIdentity
from phaul.migration.recovery import Tree
from phaul.system import procfs
from phaul.system.pidfd import HeldProcess
from phaul.system.standing_still import silence
from phaul.workloads.restorer import is_criu, stands_in_restorer

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
STOPPED_BY_TRACER = "t"  # proc_pid_stat(5)


def boot_id() -> str:
    """The kernel's name for this boot of the host."""
    return BOOT_ID.read_text().strip()


def identify(root_pid: int) -> TreeIdentity:
    """Name every process of the tree, the root first. Blocks; `DumpError` where the root does not exist."""
    tasks = []
    try:
        for pid in procfs.walk_tree(root_pid):
            tasks.append((pid, procfs.read_stat(pid).start_ticks))
    except OSError as error:
        if not tasks:
            raise DumpError(f"process {root_pid} has ended") from error
    return TreeIdentity(boot_id(), tuple(tasks))


def look(identity: TreeIdentity) -> tuple[Tree, bool]:
    """Say what became of the tree, and whether a task other than the root lives. Blocks.

    A task that a CRIU still has in its hands is traced (CRIU seizes with ptrace and lets go at the end of a dump or
    restore, 4.2 criu/seize.c), so a tracer is what says that the story is not over. A copy that is held at the gate of
    a restore is not traced: it is known by where its threads wait, and by whose child it is.
    """
    if identity.boot_id != boot_id():
        return Tree.ANOTHER_BOOT, False
    states = [_state(pid, ticks) for pid, ticks in identity.tasks]
    for unsettled in (Tree.HELD, Tree.UNFINISHED):
        if unsettled in states:
            return unsettled, True
    return states[0], Tree.ALIVE in states[1:]


def _state(pid: int, start_ticks: int) -> Tree:
    try:
        stat = procfs.read_stat(pid)
        if stat.start_ticks != start_ticks or stat.is_dead:
            return Tree.DEAD
        traced = int(procfs.read_status(pid).get("TracerPid", "0"))
        if traced and stat.state == STOPPED_BY_TRACER:
            return Tree.HELD
        if not stands_in_restorer(pid):
            return Tree.ALIVE
    except (OSError, ValueError):
        return Tree.DEAD
    return Tree.HELD if is_criu(stat.parent_pid) else Tree.UNFINISHED


def finish_kill(identity: TreeIdentity) -> None:
    """Kill what still lives of a tree that goes on elsewhere, without a word to its clients. Blocks for a moment."""
    if identity.boot_id != boot_id():
        return
    with contextlib.ExitStack() as stack:
        meant: list[HeldProcess] = []
        for pid, ticks in identity.tasks:
            try:
                held = HeldProcess.open(pid)
            except OSError:
                continue
            stack.callback(held.close)
            if held.start_ticks == ticks:
                meant.append(held)
        for held in meant:
            silence(held.fileno(), held.pid)
        for held in meant:
            held.send(signal.SIGKILL)
