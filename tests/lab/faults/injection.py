"""The faults themselves, done to a lab from outside: signals, the link, room and memory of the destination."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from phaul.lab.host import Host
from tests.lab.moves import Move
from tests.lab.witness import wait_until

from .link import SLOW, Link
from .matrix import Fault

MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")  # cgroup v1; on a machine with v2 alone: memory.max in the unified one
UNIFIED_GROUPS = Path("/sys/fs/cgroup")
MORE_MEMORY_BYTES = 8 << 20
CATCH_SECONDS = 20.0
POLL_SECONDS = 0.002


class Injection:
    """One fault in one migration. `undo` must be called in the end: it heals what does not end by itself."""

    def __init__(
        self, source: Host, destination: Host, link: Link, move: Move, patience_seconds: float = CATCH_SECONDS
    ) -> None:
        self._source = source
        self._destination = destination
        self._link = link
        self._move = move
        self._patience_seconds = patience_seconds
        self._undo: list[Callable[[], None]] = []

    def do(self, fault: Fault) -> None:
        """Let it happen, now."""
        match fault:
            case Fault.SOURCE_AGENT:
                self._source.kill_agent()
            case Fault.DESTINATION_AGENT:
                self._destination.kill_agent()
            case Fault.SOURCE_CRIU:
                self._source.kill(criu_of(self._source, self._patience_seconds))
            case Fault.DESTINATION_CRIU:
                self._destination.kill(criu_of(self._destination, self._patience_seconds))
            case Fault.CUT | Fault.CUT_FOR_GOOD:
                self._link.cut()
            case Fault.SLOW:
                self._link.slow(SLOW)
            case Fault.FULL:
                fill(self._destination, self._move.id)
            case Fault.OUT_OF_MEMORY:
                self._limit_memory()
            case Fault.TERMINAL:
                self._move.send_signal(signal.SIGHUP)
            case Fault.CANCEL:
                self._source.exec(["phaul", "cancel", self._move.id], check=False)
            case Fault.CRIU_EARLY | Fault.CRIU_LATE:
                pass  # CRIU was told when its agent was started

    def undo(self) -> None:
        """End what goes on."""
        self._link.heal()
        while self._undo:
            self._undo.pop()()

    def _limit_memory(self) -> None:
        """Put the destination's agent into a group that may have little more than it has: CRIU is born into it."""
        v1 = (MEMORY_GROUPS / "memory.limit_in_bytes").exists()
        group = (MEMORY_GROUPS if v1 else UNIFIED_GROUPS) / f"phaul-fault-{os.getpid()}"
        group.mkdir()
        self._undo.append(lambda: _remove_group(group))
        # What the agent has is not moved along (v1: move_charge_at_immigrate is 0; v2 never does): all of this is more.
        (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(MORE_MEMORY_BYTES))
        agent = machine_pid(self._destination, self._destination.agent_pid)
        (group / "cgroup.procs").write_text(str(agent))


def wait_stopped(host: Host, alive: Callable[[], bool]) -> None:
    """Wait until the agent has stopped itself."""
    pid = host.agent_pid
    assert pid is not None
    deadline = time.monotonic() + CATCH_SECONDS
    while True:
        stat = host.stat(pid)
        if stat is not None and stat.state == "T":
            return
        assert alive(), "the migration ended before it was caught"
        assert time.monotonic() < deadline, f"the agent of {host.name} does not stop itself"
        time.sleep(POLL_SECONDS)


def criu_of(host: Host, patience_seconds: float = CATCH_SECONDS) -> int:
    """Give the CRIU that the agent talks to."""
    found: list[int] = []

    def seen() -> bool:
        agent = host.agent_pid
        children = host.path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        stats = [host.stat(int(pid)) for pid in children]
        found[:] = [stat.pid for stat in stats if stat is not None and stat.command == "criu" and not stat.is_dead]
        return bool(found)

    wait_until(seen, f"there is no CRIU on {host.name}", patience_seconds)
    return found[0]


def fill(host: Host, migration_id: str) -> None:
    """Make the room of a migration as small as what is in it."""
    room = f"/run/phaul/images/{migration_id}"

    def done() -> bool:
        used = shutil.disk_usage(host.path(room)).used
        argv = ["mount", "-o", f"remount,size={max(used, 1 << 16)}", room]
        return host.exec(argv, check=False).returncode == 0  # not where more has come into it since

    wait_until(done, f"{room} cannot be made smaller")


def machine_pid(host: Host, pid: int | None) -> int:
    """Give a process's PID as the machine sees it."""
    wanted = host.path(f"/proc/{pid}/ns/pid").stat().st_ino
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                numbers = _status(entry)["NSpid"].split()
                same = (entry / "ns/pid").stat().st_ino == wanted
            except (OSError, KeyError):
                continue
            if same and numbers[-1] == str(pid):
                return int(entry.name)
    raise AssertionError(f"process {pid} of {host.name} is not seen from outside")


def _status(entry: Path) -> dict[str, str]:
    lines = (entry / "status").read_text(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _remove_group(group: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        (group.parent / "cgroup.procs").write_text(pid)
    deadline = time.monotonic() + CATCH_SECONDS
    while True:
        try:
            group.rmdir()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{group} cannot be removed"
            time.sleep(POLL_SECONDS)
