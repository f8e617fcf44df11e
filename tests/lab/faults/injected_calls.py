"""When CRIU of the source may be killed without the workload: not while it executes a system call in a task's name.

Called by the soak, which kills it at random. A task whose registers are CRIU's is lost with it (see
docs/design/0007-keeper.md, "What it does not do"); how often a kill at any moment at all meets one is what
tests/lab/test_criu_killed_in_dump.py measures.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

from phaul.lab.host import Host
from tests.lab.witness import wait_until

HALT_SECONDS = 1.0  # for CRIU to stop
BETWEEN_SECONDS = 0.0005
RUNNING = "running"
TRACED_STOP = "t"


def kill_between_calls(host: Host, criu: int, root_pid: int, patience_seconds: float) -> None:
    """Kill a CRIU that dumps, at the next moment at which no task is in the middle of one of its calls.

    Raises `AssertionError` where it ends before there is one.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        assert host.running(criu), "CRIU has ended"
        host.kill(criu, signal.SIGSTOP)
        wait_until(lambda: _halted(host, criu), "CRIU does not stop", HALT_SECONDS)
        if _between_calls(host, root_pid):
            host.kill(criu)
            return
        host.kill(criu, signal.SIGCONT)
        assert time.monotonic() < deadline, "CRIU is always in the middle of a call"
        time.sleep(BETWEEN_SECONDS)


def _halted(host: Host, pid: int) -> bool:
    stat = host.stat(pid)
    return stat is None or stat.is_dead or stat.state in ("T", TRACED_STOP)


def _between_calls(host: Host, root_pid: int) -> bool:
    """Whether each thread of a tree that CRIU traces waits in the kernel, or was stopped in code of its own."""
    pids = [root_pid]
    for pid in pids:  # grows while it is walked
        process = host.path(f"/proc/{pid}")
        try:
            foreign = _places_of_criu(process)
            for thread in (process / "task").iterdir():
                if not _is_own(thread, foreign):
                    return False
                pids += map(int, (thread / "children").read_text().split())
        except OSError:
            return False  # it has ended, or is about to
    return True


def _places_of_criu(process: Path) -> list[range]:
    """Where CRIU has tasks execute its calls: in the first bytes of the first code there is, and in its parasite."""
    found: list[range] = []
    for line in (process / "maps").read_text().splitlines():
        where, access, _, _, inode, *name = line.split(maxsplit=5)
        if "x" not in access:
            continue
        first, _, end = where.partition("-")
        code = range(int(first, 16), int(end, 16))
        if not found:
            found.append(code[:16])
        if inode == "0" and not name:
            found.append(code)
    return found


def _is_own(thread: Path, foreign: list[range]) -> bool:
    status = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)
    if status["TracerPid"] == "0":
        return True
    call = (thread / "syscall").read_text().split()
    if call[0] == RUNNING:
        return False
    counter = int(call[-1], 16)
    return status["State"][0] != TRACED_STOP or not any(counter in code for code in foreign)
