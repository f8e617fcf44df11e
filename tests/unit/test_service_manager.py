"""What the agent tells its service manager, and where it puts its children."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from phaul.system import notify, placement


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        monkeypatch.setenv(notify.SOCKET_VARIABLE, str(tmp_path / "notify"))
        yield listening


async def test_the_manager_hears_of_beginning_and_end(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(notify.WATCHDOG_VARIABLE, raising=False)
    async with notify.serving():
        await asyncio.sleep(0)
        assert manager.recv(100) == b"READY=1"
    assert manager.recv(100) == b"STOPPING=1"
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


async def test_the_watchdog_is_fed_several_times_a_period(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(notify.WATCHDOG_VARIABLE, "30000")
    async with notify.serving():
        assert manager.recv(100) == b"READY=1"
        for _ in range(4):
            assert await asyncio.to_thread(manager.recv, 100) == b"WATCHDOG=1"


async def test_an_event_loop_that_stands_still_feeds_no_watchdog(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(notify.WATCHDOG_VARIABLE, "3000")
    async with notify.serving():
        assert manager.recv(100) == b"READY=1"
        manager.settimeout(0.1)
        with pytest.raises(TimeoutError):
            manager.recv(100)  # blocks the loop, as a defect would


async def test_without_a_manager_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(notify.SOCKET_VARIABLE, raising=False)
    async with notify.serving():
        pass


async def test_a_manager_that_has_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notify.SOCKET_VARIABLE, str(tmp_path / "nobody"))
    async with notify.serving():
        pass


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[Path]:
    """A directory that looks like a control group; joining one there is writing a file."""
    (tmp_path / "cgroup.procs").touch()
    placement.use(tmp_path)
    yield tmp_path
    placement.use(None)


def test_a_child_joins_a_group_of_its_own_before_it_is_the_program(groups: Path) -> None:
    argv = placement.command(["sh", "-c", 'echo "$$"; cat "$1/$$/cgroup.procs"', "sh", str(groups)])
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert told[1] == "0"  # written by itself, in a group with its own PID as a name
    assert (groups / told[0]).is_dir()


def test_a_child_runs_where_no_group_can_be_made(groups: Path) -> None:
    argv = placement.command(["echo", "here"])
    (groups / "cgroup.procs").unlink()
    groups.chmod(0o500)
    argv[3] = "/nowhere"
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "here\n"


def test_a_missing_program_is_found_missing_by_who_starts_it(groups: Path) -> None:
    with pytest.raises(FileNotFoundError):
        subprocess.run(placement.command(["/no/such/program"]), check=False)


def test_groups_in_which_nobody_is_left_go(groups: Path) -> None:
    (groups / "999999999").mkdir()  # above every PID
    (groups / str(os.getpid())).mkdir()
    (groups / "holder").mkdir()
    placement.sweep()
    assert sorted(entry.name for entry in groups.iterdir() if entry.is_dir()) == sorted([str(os.getpid()), "holder"])


def test_without_a_group_a_command_is_what_it_was(tmp_path: Path) -> None:
    placement.use(tmp_path)  # a directory, but no control group
    assert placement.command(["true"]) == ["true"]
    placement.use(None)
    assert placement.command(["true"]) == ["true"]
