"""Orphans are reaped, because a zombie keeps its PID taken; the exit status of our own children is nobody else's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phaul.system import children
from phaul.system.procfs import read_stat

# Run in a process of its own: being a subreaper would outlast the test.
AGENT = """
import asyncio, os, sys
from phaul.system import children
from phaul.system.process import run

ORPHAN = "sleep 0.%d >/dev/null 2>&1 & echo $!; exit %d"

async def main():
    children.adopt_orphans()
    commands = [ORPHAN % (number % 3, number) for number in range(20)]
    ended = await asyncio.gather(*(run(["sh", "-c", command], check=False) for command in commands))
    assert [each.exit_status for each in ended] == list(range(20)), ended
    orphans = [int(each.stdout) for each in ended]
    async with asyncio.timeout(20):
        while left := [pid for pid in orphans if os.path.exists(f"/proc/{pid}")]:
            await asyncio.sleep(0.02)
    assert not children._registry.own
    print("reaped")

asyncio.run(main())
"""


def zombie() -> subprocess.Popen[bytes]:
    """A child of ours that has ended with status 7 and that nobody has waited for."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(7)"], stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while read_stat(child.pid).state != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return child


def test_an_agent_reaps_what_it_adopts_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AGENT], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["reaped"]), done.stderr


def test_a_child_of_ours_is_left_to_who_waits_for_it() -> None:
    with children.starting() as started:
        child = zombie()
        started.pid = child.pid
    children.reap_orphans()
    assert Path(f"/proc/{child.pid}").exists()
    assert child.wait() == 7
    children.ended(child.pid)
    assert child.pid not in children._registry.own


def test_a_child_that_nobody_here_started_is_reaped() -> None:
    child = zombie()
    children.reap_orphans()
    assert not Path(f"/proc/{child.pid}").exists()
    child.wait()


def test_one_that_still_runs_is_left_alone() -> None:
    child = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
    try:
        children.reap_orphans()
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


async def test_while_a_child_is_being_started_nobody_is_reaped() -> None:
    """It is in the kernel's list before it is in ours."""
    child = zombie()
    with children.starting():
        children.reap_orphans()
        await asyncio.sleep(0.15)
        assert Path(f"/proc/{child.pid}").exists()
    async with asyncio.timeout(5):
        while Path(f"/proc/{child.pid}").exists():
            await asyncio.sleep(0.01)
    child.wait()


def test_one_that_could_not_be_started_is_forgotten() -> None:
    before = set(children._registry.own)
    with pytest.raises(FileNotFoundError), children.starting():
        raise FileNotFoundError
    assert children._registry.own == before
    assert children._registry.being_started == 0


def test_a_thread_that_ends_meanwhile_hides_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for thread in ("1", "2", "3"):
        (tmp_path / thread).mkdir()
    (tmp_path / "1/children").write_text("11 12 ")
    (tmp_path / "3/children").write_text("13")
    monkeypatch.setattr(children, "THREADS", tmp_path)
    assert sorted(children.of_this_process()) == [11, 12, 13]
