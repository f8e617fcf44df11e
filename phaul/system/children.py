"""Whose child is whose: the PIDs that this program started itself, and the ones it adopted as a subreaper.

`system.process` and `criu.session` start children inside `starting`; `agent.server` calls `adopt_orphans` once. The
agent is a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), so that a restored tree, or the half-restored tasks of a
CRIU that was killed, are its children and not PID 1's; it reaps them, because an unreaped zombie keeps its PID taken.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from phaul.system.procfs import read_stat

log = structlog.get_logger(__name__)

PR_SET_CHILD_SUBREAPER = 36
THREADS = Path("/proc/self/task")  # each has the children that it started


class _Registry:
    """PIDs of children that asyncio waits for. While one is being started nobody is reaped: it has no entry yet."""

    def __init__(self) -> None:
        self.own: set[int] = set()
        self.being_started = 0


_registry = _Registry()


class NewChild:
    """Filled in by who starts a child: its PID, as soon as it is known."""

    def __init__(self) -> None:
        self.pid = 0


@contextmanager
def starting() -> Iterator[NewChild]:
    """Start a child inside; it is ours from then on, until `ended` is called for it."""
    child = NewChild()
    _registry.being_started += 1
    try:
        yield child
    finally:
        if child.pid:
            _registry.own.add(child.pid)
        _registry.being_started -= 1


def ended(pid: int) -> None:
    """A child of ours was waited for."""
    _registry.own.discard(pid)


def adopt_orphans() -> None:
    """Become a subreaper and reap adopted children from now on, in the running event loop."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        log.warning("orphans.not_adopted", reason=os.strerror(ctypes.get_errno()))
        return
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, reap_orphans)


def reap_orphans() -> None:
    """Reap every zombie child that nobody here started."""
    if _registry.being_started:
        asyncio.get_running_loop().call_later(0.1, reap_orphans)
        return
    for pid in of_this_process():
        try:
            if pid not in _registry.own and read_stat(pid).state == "Z":
                os.waitpid(pid, os.WNOHANG)
                log.debug("orphan.reaped", pid=pid)
        except (OSError, ChildProcessError):
            continue  # it went away in between


def of_this_process() -> list[int]:
    """Give the PIDs of all children, adopted ones as well, also those that wait to be reaped."""
    found: list[int] = []
    for thread in THREADS.iterdir():
        try:
            found += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # a thread that ended in between; its children are another's now
    return found
