"""The throttle of pre-copy on this machine's own control groups: it slows, it gives back, also after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from phaul.errors import PreflightError
from phaul.system import cpu_quota, procfs
from phaul.system.cpu_quota import CpuQuota, cpu_seconds, find_place

BURN = "import os\nif os.fork() == 0:\n    pass\nwhile True: pass"
# A burner that ends a child and starts another all the time: what is moved is never the tree that was seen.
FORK = "import os, time\nwhile True:\n    if os.fork() == 0:\n        os._exit(0)\n    os.wait()"


def group_of(pid: int) -> str:
    found = cpu_quota._hierarchy(pid)
    assert found is not None
    return cpu_quota._group_of(pid, found[0])


@pytest.fixture
def burner() -> Iterator[int]:
    """Two processes that take all the CPU time they get."""
    yield from running(BURN)


@pytest.fixture
def forker() -> Iterator[int]:
    """A process that forks without end."""
    yield from running(FORK)


def running(program: str) -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.DEVNULL, start_new_session=True)
    time.sleep(0.2)
    try:
        yield child.pid
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def share(pid: int, seconds: float = 1.5) -> float:
    """CPUs that a tree takes."""
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began)


async def test_a_tree_is_slowed_and_runs_on_as_before(burner: int) -> None:
    quota = CpuQuota()
    home = group_of(burner)
    before = await quota.look(burner)
    assert before["cpus"] > 0.1
    await quota.slow_to(before, 20)
    assert {group_of(pid) for pid in procfs.walk_tree(burner)} == {f"{home.rstrip('/')}/phaul-throttle-{burner}"}
    assert share(burner) < before["cpus"] * 0.35
    await quota.slow_to(before, 60)
    assert before["cpus"] * 0.35 < share(burner) < before["cpus"] * 0.8
    assert await quota.put_back(before) == ()
    assert {group_of(pid) for pid in procfs.walk_tree(burner)} == {home}
    assert not Path(before["group"]).exists()


async def test_another_agent_puts_back_what_a_journal_says_and_may_do_so_twice(burner: int) -> None:
    home = group_of(burner)
    kept = json.dumps(await CpuQuota().look(burner))
    await CpuQuota().slow_to(json.loads(kept), 10)
    for _ in range(2):
        assert await CpuQuota().put_back(json.loads(kept)) == ()
    assert group_of(burner) == home


async def test_nothing_happens_where_nothing_was_changed(burner: int) -> None:
    quota = CpuQuota()
    before = await quota.look(burner)
    home = group_of(burner)
    assert await quota.put_back(before) == ()
    assert group_of(burner) == home


async def test_a_group_of_its_own_gets_the_quota_and_the_old_one_back(burner: int) -> None:
    found = cpu_quota._hierarchy(burner)
    assert found is not None and found[0] == 1, "this test is written for a machine with cgroup v1"
    group = found[1] / f"test-{os.getpid()}"
    group.mkdir()
    home = group_of(burner)
    try:
        for pid in procfs.walk_tree(burner):
            (group / "cgroup.procs").write_text(str(pid))
        (group / "cpu.cfs_quota_us").write_text("150000")
        quota = CpuQuota()
        before = await quota.look(burner)
        assert (before["group"], before["home"]) == (str(group), "")
        await quota.slow_to(before, 10)
        assert (group / "cpu.cfs_quota_us").read_text().strip() != "150000"
        assert await quota.put_back(before) == ()
        assert (group / "cpu.cfs_quota_us").read_text().strip() == "150000"
        assert (group / "cpu.cfs_period_us").read_text().strip() == "100000"
        assert group.is_dir()
    finally:
        for pid in procfs.walk_tree(burner):
            (found[1] / home.lstrip("/") / "cgroup.procs").write_text(str(pid))
        group.rmdir()


async def test_a_tree_that_has_ended_leaves_no_group_behind(burner: int) -> None:
    quota = CpuQuota()
    before = await quota.look(burner)
    await quota.slow_to(before, 20)
    os.killpg(burner, signal.SIGKILL)
    assert await quota.put_back(before) == ()
    assert not Path(before["group"]).exists()


async def test_a_tree_that_forks_is_moved_whole(forker: int) -> None:
    quota = CpuQuota()
    before = await quota.look(forker)
    home = group_of(forker)
    await quota.slow_to(before, 50)
    group = Path(before["group"]).name
    assert all(group_of(pid).endswith(group) for pid in procfs.walk_tree(forker)[:1])
    assert await quota.put_back(before) == ()
    assert group_of(forker) == home
    assert not Path(before["group"]).exists()


async def test_another_boot_is_not_touched(burner: int) -> None:
    quota = CpuQuota()
    before = await quota.look(burner)
    await quota.slow_to(before, 20)
    group = group_of(burner)
    assert await quota.put_back({**before, "boot_id": "another"}) == ()
    assert group_of(burner) == group
    assert await quota.put_back(before) == ()


def test_a_tree_spread_over_groups_with_others_is_refused(burner: int) -> None:
    found = cpu_quota._hierarchy(burner)
    assert found is not None
    group = found[1] / f"test-{os.getpid()}"
    group.mkdir()
    try:
        child = procfs.walk_tree(burner)[1]
        (group / "cgroup.procs").write_text(str(child))
        with pytest.raises(PreflightError, match="several control groups"):
            find_place(burner, 1.0)
    finally:
        (found[1] / "cgroup.procs").write_text(str(child))
        group.rmdir()
