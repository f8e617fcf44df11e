"""What a CRIU that was killed in the middle of a restore leaves behind: a copy that stands in its restorer for good.

Called by `criu.gates`. CRIU takes such a copy with it when it fails, also when its socket closes, but not when it is
killed itself (seen with 4.2.1). The tasks are then children of the agent, which is a subreaper, and keep their PIDs
taken. Kills only a tree that this very CRIU can have made, and without a word to its clients: they are going to meet
the next copy. Where the copy was guarded (`criu.guard`) there is nothing left to do.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import closing

import structlog

from phaul.system import children, procfs
from phaul.system.pidfd import HeldProcess
from phaul.system.standing_still import silence

log = structlog.get_logger(__name__)

REAPED_SECONDS = 5.0  # for the agent to reap what was killed; the next restore needs the PIDs
LOOK_SECONDS = 0.01
COMMAND = "criu"


def boot_ticks() -> int:
    """Now, as the kernel counts the start of a process: clock ticks since boot, proc_pid_stat(5)."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


async def end_leftovers(root_pid: int, since_ticks: int) -> None:
    """Kill the tree under `root_pid` and wait until its PIDs are free, if a CRIU begun at `since_ticks` has left it.

    That it has this PID, was born after CRIU and came to us as an orphan makes sure of it: CRIU alone makes processes
    of a PID that it chooses.
    """
    held = await asyncio.to_thread(_hold, root_pid, since_ticks)
    if not held:
        return
    try:
        await asyncio.to_thread(_kill, held)
        async with asyncio.timeout(REAPED_SECONDS):
            for process in held:
                await process.wait_dead()
            while any((procfs.PROC / str(process.pid)).exists() for process in held):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        log.warning("restore.leftovers_stay", pids=[process.pid for process in held])
    finally:
        for process in held:
            process.close()


def end_helpers(criu_pid: int) -> None:
    """Kill what a CRIU has forked for itself and not ended, as it was killed: such a child would sleep for good.

    CRIU 4.2 has some while it looks at what the kernel can do. Only right where no copy of it runs.
    """
    for pid in children.of_this_process():
        try:
            held = HeldProcess.open(pid)
        except OSError:
            continue
        with closing(held):
            if _is_helper(pid, criu_pid):
                log.warning("criu.helper_killed", pid=pid, criu_pid=criu_pid)
                held.send(signal.SIGKILL)


def _is_helper(pid: int, criu_pid: int) -> bool:
    """Whether a child of ours is of the process group that this CRIU led, and was never made into another program."""
    try:
        stat = procfs.read_stat(pid)
    except OSError:
        return False
    return pid != criu_pid and stat.group_id == criu_pid and stat.command == COMMAND and not stat.is_dead


def _kill(held: Sequence[HeldProcess]) -> None:
    if held:
        log.warning("restore.leftovers_killed", pids=[process.pid for process in held])
    for process in held:
        silence(process.fileno(), process.pid)
    for process in held:
        process.send(signal.SIGKILL)


def _hold(root_pid: int, since_ticks: int) -> list[HeldProcess]:
    held: list[HeldProcess] = []
    try:
        held.append(HeldProcess.open(root_pid))
        stat = procfs.read_stat(root_pid)
        if stat.parent_pid != os.getpid() or stat.start_ticks < since_ticks or stat.is_dead:
            held.pop().close()
            return []
        pids = procfs.walk_tree(root_pid)
    except OSError:
        for process in held:
            process.close()
        return []  # there is none: the usual case
    for pid in pids[1:]:
        try:
            held.append(HeldProcess.open(pid))
        except OSError:
            continue  # it has ended
    return held
