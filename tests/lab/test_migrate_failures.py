"""Migrations that do not come to their end: what fails, what is cancelled, and who leaves. The workload goes on."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from phaul.lab.host import Host

from .clients import Numbering
from .faults.link import limit
from .moves import Move, migrate, phaul
from .stage import Stage
from .witness import longest_gap, wait_until

PORT = 5000
MIB = 256
BIG_MIB = 1024
WATCHED_MIB = 96  # a second and a bit, slowed
RUNS_AGAIN_SECONDS = 1.0  # what the project promises
HELD_FILE = "/srv/data/held"
HELD_CONTENT = "the content of a file that is held open"
FAST, BURST = "100gbit", "256kb"
SLOW_MEBIT_PER_SECOND = 800  # so that a GiB takes ten seconds, and there is a middle of the migration
CANCELLED_STATUS = 25
RESTORE_STATUS = 23


@pytest.fixture
def held_file(stage: Stage) -> Iterator[str]:
    """A file that is on both hosts, alike."""
    for host in (stage.a, stage.b):
        host.path(HELD_FILE).parent.mkdir()
        host.path(HELD_FILE).write_text(HELD_CONTENT)
        host.path(HELD_FILE).chmod(0o644)
    yield HELD_FILE
    for host in (stage.a, stage.b):
        host.path(HELD_FILE).unlink(missing_ok=True)
        host.path(HELD_FILE).parent.rmdir()


def test_a_restore_that_fails_is_rolled_back(stage: Stage, held_file: str) -> None:
    """A file vanishes from the destination after preflight has seen it there."""
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT), "--memory", str(MIB), "--open", held_file)
    content = stage.ask(stage.a, "checksum")
    with Numbering(stage.client, (address, PORT)) as client:
        stage.wait_exchange(client)
        with Move(stage.a, pid, "b", stage.ip4) as move:
            move.wait_phase("prepare")
            stage.b.path(held_file).unlink()
            move.wait()
        assert move.status == RESTORE_STATUS, move.told()
        assert move.error["code"] == "RestoreError"
        assert move.error["where"] == "source"
        assert held_file in move.error["message"] + move.error["detail"], move.told()
        check_runs_again(stage, pid, failed_at(stage.b, move))
        stage.wait_exchange(client)
        assert stage.has_address(stage.a, stage.ip4)
        assert not stage.has_address(stage.b, stage.ip4)
        assert not stage.b.running(pid)
        assert stage.ask(stage.a, "checksum") == content
        # Nothing of the failure is in the way of the next attempt.
        stage.b.path(held_file).write_text(HELD_CONTENT)
        stage.b.path(held_file).chmod(0o644)
        second = stage.move(pid, stage.a, stage.ip4)
        assert stage.ask(stage.b, "checksum") == content
        assert stage.ask(stage.b, "held") == [HELD_CONTENT]
        stage.wait_exchange(client)
        (account,) = client.finish()
        account.check(move.phase_at("freeze"), second.ended, finished=True)
    stage.check_ticks(pid, stage.a, stage.b)


def test_restores_that_fail_again_and_again_add_nothing_up(stage: Stage, held_file: str) -> None:
    """A file that looks the same on the destination and cannot be opened there as the workload has it open."""
    pid = stage.start("server", "--write", held_file)
    stage.b.exec(["mount", "--bind", "-o", "ro", held_file, held_file])
    try:
        for _ in range(3):
            move = migrate(stage.a, pid, "b")
            assert move.status == RESTORE_STATUS, move.told()
            assert held_file in move.error["message"] + move.error["detail"], move.told()
            check_runs_again(stage, pid, failed_at(stage.b, move))
    finally:
        stage.b.exec(["umount", held_file])
    # Whether anything is left of them is looked at when the stage is cleared.


def test_cancelling_while_the_copy_is_made(stage: Stage) -> None:
    """CRIU stands still on the destination; until COMMIT nothing keeps the source from going on."""
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT), "--memory", str(MIB))
    with Numbering(stage.client, (address, PORT)) as client:
        stage.wait_exchange(client)
        with Move(stage.a, pid, "b", stage.ip4) as move:
            move.wait_phase("restore")
            criu = stop_criu(stage.b)
            assert phaul(stage.a, "cancel", move.id).returncode == 0
            check_runs_again(stage, pid, time.monotonic())
            for each in criu:
                stage.b.kill(each, signal.SIGCONT)
            move.wait()
        assert move.status == CANCELLED_STATUS, move.told()
        stage.wait_exchange(client)
        (account,) = client.finish()
        account.check(move.phase_at("freeze"), move.ended, finished=True)
    assert stage.has_address(stage.a, stage.ip4)
    assert not stage.has_address(stage.b, stage.ip4)
    wait_until(lambda: not stage.b.running(pid), "the copy is still there")


def test_cancelling_in_the_middle(stage: Stage) -> None:
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT), "--memory", str(BIG_MIB))
    with Numbering(stage.client, (address, PORT)) as client, slowed(stage):
        stage.wait_exchange(client)
        with Move(stage.a, pid, "b", stage.ip4) as move:
            move.wait_progress(1 << 20)
            asked_at = time.monotonic()
            cancelled = phaul(stage.a, "cancel", move.id, "--json")
            assert cancelled.returncode == 0, cancelled.stdout
            answered_at = time.monotonic()
            move.wait()
        assert move.status == CANCELLED_STATUS, move.told()
        assert move.error["where"] == "source"
        check_runs_again(stage, pid, answered_at)
        stage.wait_exchange(client)
        (account,) = client.finish()
        account.check(asked_at, move.ended, finished=True)
    assert not stage.b.running(pid)
    late = phaul(stage.a, "cancel", move.id, "--json")
    assert late.returncode == 2


def test_ctrl_c_asks_and_cancels(stage: Stage) -> None:
    pid = stage.start("server", "--memory", str(WATCHED_MIB))
    with slowed(stage), Terminal(stage.a, ["phaul", "migrate", str(pid), "--to", "b"]) as terminal:
        terminal.wait_text("freeze")
        terminal.type("\x03")
        terminal.wait_text("ancel and roll back")
        terminal.type("c\n")
        cancelled_at = time.monotonic()
        assert terminal.wait() == CANCELLED_STATUS
    check_runs_again(stage, pid, cancelled_at)
    assert not stage.b.running(pid)


@pytest.mark.parametrize("way", ["Ctrl-C twice", "the terminal is closed", "SIGTERM"])
def test_leaving_leaves_it_running_in_the_agent(stage: Stage, way: str) -> None:
    pid = stage.start("server", "--memory", str(WATCHED_MIB))
    with slowed(stage), Terminal(stage.a, ["phaul", "migrate", str(pid), "--to", "b"]) as terminal:
        terminal.wait_text("freeze")
        if way == "Ctrl-C twice":
            terminal.type("\x03")
            terminal.wait_text("ancel and roll back")
            terminal.type("\x03")
            assert terminal.wait() == 128 + signal.SIGINT
        elif way == "SIGTERM":
            terminal.process.send_signal(signal.SIGTERM)
            terminal.wait()
        else:
            terminal.close()
        assert stage.a.running(pid), "it had moved before the command was left"
        stage.witness.wait_ticks(pid, sender=stage.b.ip4)
    stage.check_ticks(pid, stage.a, stage.b)


def test_a_destination_whose_agent_dies_is_given_up(stage: Stage) -> None:
    pid = stage.start("server", "--memory", str(MIB))
    with slowed(stage), Move(stage.a, pid, "b") as move:
        move.wait_progress(1 << 20)
        killed_at = time.monotonic()
        stage.b.kill_agent()
        move.wait()
    assert move.status in (20, 21, 22, 23, 30), move.told()
    assert move.error["where"] == "source"
    check_runs_again(stage, pid, killed_at)
    stage.b.start_agent()
    stage.move(pid, stage.a)
    stage.check_ticks(pid, stage.a, stage.b)


def failed_at(destination: Host, move: Move) -> float:
    """Say when CRIU failed on the destination, on the monotonic clock: that is when it wrote the end of its log."""
    log = destination.path(f"/var/lib/phaul/migrations/{move.id}/restore.log")
    return log.stat().st_mtime + time.monotonic() - time.time()


def check_runs_again(stage: Stage, pid: int, failed: float) -> None:
    """The workload ticks on a again within a second of the failure, and nowhere else."""
    ticks = stage.check_ticks(pid, stage.a)
    first = min(tick.arrived for tick in ticks if tick.arrived > failed)
    assert first - failed < RUNS_AGAIN_SECONDS, f"{first - failed:.3f} s"
    assert longest_gap(ticks, since=failed + RUNS_AGAIN_SECONDS) < RUNS_AGAIN_SECONDS


def stop_criu(host: Host) -> list[int]:
    """Stop CRIU on a host at the first moment that it is seen there."""
    stopped: list[int] = []

    def seen() -> bool:
        for entry in host.path("/proc").iterdir():
            stat = host.stat(int(entry.name)) if entry.name.isdigit() else None
            if stat is not None and stat.command == "criu":
                host.kill(stat.pid, signal.SIGSTOP)
                stopped.append(stat.pid)
        return bool(stopped)

    wait_until(seen, f"CRIU is not seen on {host.name}")
    return stopped


@contextmanager
def slowed(stage: Stage) -> Iterator[None]:
    """Let a send to b no faster than this. The queue stays when it is over, as fast as can be: see `limit`."""
    limit(stage.a, stage.b, f"{SLOW_MEBIT_PER_SECOND}mbit", BURST)
    try:
        yield
    finally:
        limit(stage.a, stage.b, FAST, BURST)


class Terminal:
    """A command on a host with a terminal of its own. Killed at the end of the `with`."""

    def __init__(self, host: Host, argv: list[str]) -> None:
        self._controller, terminal = pty.openpty()
        # `setsid --ctty` makes it the controlling terminal: Ctrl-C and its closing then reach the command as signals.
        self.process = host.popen(
            ["setsid", "--ctty", "--wait", *argv],
            env={"TERM": "xterm", "COLUMNS": "120"},
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.STDOUT,
        )
        os.close(terminal)
        self._shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        """Close the terminal, as a window is closed or a connection lost."""
        if self._controller >= 0:
            os.close(self._controller)
            self._controller = -1

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._controller, text.encode())

    def wait_text(self, text: str) -> None:
        """Wait until something is shown."""
        os.set_blocking(self._controller, False)

        def shown() -> bool:
            self._read()
            return text.lower() in self._shown.lower()

        wait_until(shown, f"{text!r} is not shown")

    def wait(self) -> int:
        """Wait until the command ends; give its status."""
        os.set_blocking(self._controller, False)

        def ended() -> bool:
            self._read()
            return self.process.poll() is not None

        wait_until(ended, "the command does not end")
        return int(self.process.returncode)

    def _read(self) -> None:
        try:
            self._shown += os.read(self._controller, 1 << 16).decode(errors="replace")
        except OSError:  # nothing new (EAGAIN), or nobody has the terminal open any more (EIO)
            return
