"""What a killed CRIU has left of a restore is killed, and nothing else."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from pathlib import Path

import pytest

from phaul.criu import leftovers
from phaul.criu.leftovers import boot_ticks, end_helpers, end_leftovers
from phaul.criu.session import CriuGoneError, CriuSession
from phaul.system import procfs
from phaul.system.children import PR_SET_CHILD_SUBREAPER
from tests.unit.fake_criu import FakeCriu
from tests.unit.process_trees import Start


async def test_an_orphan_of_this_restore_is_killed_with_its_children(start: Start) -> None:
    since = boot_ticks()
    child = start("if os.fork() == 0: time.sleep(600)")
    pids = procfs.walk_tree(child.pid)
    reaping = asyncio.create_task(asyncio.to_thread(child.wait))
    await asyncio.wait_for(end_leftovers(child.pid, since), 20)
    assert await reaping < 0
    assert len(pids) == 2
    for pid in pids:
        try:
            assert procfs.read_stat(pid).is_dead
        except FileNotFoundError:
            pass  # it was reaped as well


async def test_who_was_there_before_is_left_alone(start: Start) -> None:
    child = start("")
    await end_leftovers(child.pid, boot_ticks() + 1)
    assert child.poll() is None


async def test_another_ones_child_is_left_alone(start: Start) -> None:
    since = boot_ticks()
    child = start("if os.fork() == 0: time.sleep(600)")
    (_, grandchild) = procfs.walk_tree(child.pid)
    await end_leftovers(grandchild, since)
    assert procfs.read_stat(grandchild).state != "Z"


async def test_what_a_killed_criu_has_forked_is_killed_and_no_other_child(tmp_path: Path, start: Start) -> None:
    other = start("", session=False)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0  # as the agent is
    try:
        fake = FakeCriu(tmp_path, ("fork_helper",), ("die",), reads_request=False)
        async with await CriuSession.start(fake.path) as session:
            with pytest.raises(CriuGoneError):
                await session.receive()
        (helper,) = (int(line.split()[1]) for line in fake.notes if line.startswith("helper "))
        end_helpers(other.pid)  # a group in which there is no helper
        assert not procfs.read_stat(helper).is_dead
        end_helpers(session.pid)
        async with asyncio.timeout(10):
            while not procfs.read_stat(helper).is_dead:
                await asyncio.sleep(0.01)
        _, status = os.waitpid(helper, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert other.poll() is None


async def test_where_nothing_is_left_nothing_happens(start: Start) -> None:
    child = start("")
    child.kill()
    child.wait()
    await end_leftovers(child.pid, 0)


async def test_one_that_nobody_reaps_is_not_waited_for_for_ever(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "REAPED_SECONDS", 0.2)
    since = boot_ticks()
    child = start("")
    before = len(list(Path("/proc/self/fd").iterdir()))
    await asyncio.wait_for(end_leftovers(child.pid, since), 10)
    assert procfs.read_stat(child.pid).is_dead
    assert len(list(Path("/proc/self/fd").iterdir())) == before
