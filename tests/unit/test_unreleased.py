"""A copy ends with its CRIU unless it was let run before; tried on a process, its child, and what they connect to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from phaul.criu.guard import CopyGuard
from phaul.criu.leftovers import boot_ticks
from phaul.system import keeper, procfs
from phaul.system.attendants import Attendants
from tests.unit.test_keeper import QUIET_SECONDS, WAIT_SECONDS, wait

# Stands for a CRIU and the copy that it has restored: the copy is its child, which it has in its hands or not.
CRIU = """
import ctypes, os, subprocess, sys, time
copy = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if sys.argv[1] == "traced":
    assert ctypes.CDLL(None).ptrace(0x4206, copy.pid, 0, 0) == 0  # PTRACE_SEIZE
print(copy.pid, flush=True)
sys.stdin.readline()
"""


@dataclass(slots=True)
class Restore:
    criu: subprocess.Popen[str]
    root_pid: int
    since_ticks: int

    def kill_criu(self) -> None:
        self.criu.send_signal(signal.SIGKILL)
        self.criu.wait(WAIT_SECONDS)

    def copy_lives(self) -> bool:
        try:
            return not procfs.read_stat(self.root_pid).is_dead
        except OSError:
            return False


@contextlib.contextmanager
def restoring(how: str) -> Iterator[Restore]:
    since = boot_ticks()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CRIU, how], stdin=pipe, stdout=pipe, text=True) as criu:
        assert criu.stdout is not None
        restore = Restore(criu, int(criu.stdout.readline()), since)
        pidfd = os.pidfd_open(restore.root_pid)
        try:
            yield restore
        finally:
            criu.kill()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


@contextlib.asynccontextmanager
async def guarding(restore: Restore) -> AsyncIterator[CopyGuard]:
    guard = CopyGuard(await Attendants().take(keeper.__name__))
    try:
        assert await guard.watch(restore.criu.pid, restore.root_pid, restore.since_ticks)
        yield guard
    finally:
        await guard.close()


@pytest.mark.parametrize("how", ["traced", "waiting"])
async def test_it_ends_with_its_criu(how: str) -> None:
    with restoring(how) as restore:
        async with guarding(restore) as guard:
            restore.kill_criu()
            wait(lambda: not restore.copy_lives())
            assert not await guard.release()


@pytest.mark.parametrize("how", ["traced", "waiting"])
async def test_once_let_run_it_outlives_criu(how: str) -> None:
    with restoring(how) as restore:
        async with guarding(restore) as guard:
            assert await guard.release()
            restore.kill_criu()
            time.sleep(QUIET_SECONDS)
            assert restore.copy_lives()


@pytest.mark.parametrize(("how", "lives"), [("traced", False), ("waiting", True)])
async def test_without_the_agent_only_what_is_in_criu_s_hands_ends(how: str, lives: bool) -> None:
    """What it has let go of runs, or is found at the gate by the agent that is started next."""
    with restoring(how) as restore:
        async with guarding(restore) as guard:
            guard._socket.close()
            await asyncio.sleep(QUIET_SECONDS)
            restore.kill_criu()
            time.sleep(QUIET_SECONDS)
            assert restore.copy_lives() is lives
            assert await asyncio.wait_for(guard._child.wait(), WAIT_SECONDS) == 0


async def test_who_was_there_before_is_left_alone() -> None:
    with restoring("traced") as restore:
        restore.since_ticks = boot_ticks() + 1000
        async with guarding(restore):
            restore.kill_criu()
            time.sleep(QUIET_SECONDS)
            assert restore.copy_lives()


async def test_a_criu_that_is_gone_cannot_be_watched() -> None:
    with restoring("waiting") as restore:
        restore.kill_criu()
        guard = CopyGuard(await Attendants().take(keeper.__name__))
        try:
            assert not await guard.watch(restore.criu.pid, restore.root_pid, restore.since_ticks)
            assert await guard.release()
        finally:
            await guard.close()
