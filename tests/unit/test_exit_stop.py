"""A process at its very end: what it traces stands still until the watcher has done what it wanted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from phaul.errors import DumpError
from phaul.system import keeper, procfs, standing_still
from phaul.system.exit_stop import ExitStop
from tests.unit.process_trees import Start
from tests.unit.test_keeper import QUIET_SECONDS, WAIT_SECONDS, Traced, keeping, wait

EXIT_STATUS = 7


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    tree = Traced(tmp_path, child=True)
    try:
        yield tree
    finally:
        tree.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_dying_tracer_holds_does_not_run_before_the_watcher_is_done(
    traced: Traced, number: signal.Signals
) -> None:
    seen: list[list[bool]] = []
    watch = ExitStop(traced.tracer_pid, lambda: seen.append(traced.runs()))
    assert watch.begin()
    traced.tell("seize")
    os.kill(traced.tracer_pid, number)
    watch.join(WAIT_SECONDS)
    assert seen == [[False, False]]
    traced.wait_runs()
    traced.kill_tracer()  # reaps it: its parent hears of its end as ever


def test_a_watched_process_goes_on_as_ever(start: Start) -> None:
    """Its signals reach it, it can be stopped and continued, and it ends with its own status."""
    child = start(
        f"signal.signal(signal.SIGUSR1, lambda *_: os._exit({EXIT_STATUS}))\n"
        "signal.signal(signal.SIGUSR2, lambda *_: open('usr2', 'w').close())"
    )
    ended: list[str] = []
    watch = ExitStop(child.pid, lambda: ended.append(procfs.read_stat(child.pid).state))
    assert watch.begin()
    child.send_signal(signal.SIGUSR2)
    note = Path(str(child.args[3])).with_name("usr2")  # type: ignore[index]
    wait(note.exists)
    child.send_signal(signal.SIGSTOP)
    child.send_signal(signal.SIGUSR1)
    time.sleep(QUIET_SECONDS)
    # Not by `poll`: it may take a stop that is the watcher's to hear of, as that is a thread of this process.
    assert not procfs.read_stat(child.pid).is_dead
    child.send_signal(signal.SIGCONT)
    watch.join(WAIT_SECONDS)
    assert child.wait(WAIT_SECONDS) == EXIT_STATUS
    assert ended == ["t"]


def test_who_has_ended_or_is_traced_cannot_be_watched(traced: Traced) -> None:
    traced.tell("seize")
    assert not ExitStop(traced.pid, lambda: None).begin()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not ExitStop(child.pid, lambda: None).begin()


async def test_the_keeper_watches(traced: Traced) -> None:
    async with keeping(traced) as kept:
        await kept.watch(traced.tracer_pid)
        tracer = int(procfs.read_status(traced.tracer_pid)["TracerPid"])
        assert tracer in procfs.thread_ids(kept.pid)
        traced.tell("seize")
        await kept.hold()
        traced.kill_tracer()
        wait(lambda: traced.state() == "T")  # as without a watch: it is the SIGSTOP that holds them


async def test_a_keeper_that_cannot_watch_is_no_reason_to_fail(traced: Traced) -> None:
    async with keeping(traced) as kept:
        await kept.watch(traced.pid + 100_000)
        traced.tell("seize")
        await kept.hold()


async def test_who_ran_on_after_the_dump_is_not_held(traced: Traced) -> None:
    """CRIU was killed after it had told of its end, and before anybody was stopped: the images are behind by now."""
    async with keeping(traced) as kept:
        with pytest.raises(DumpError, match="ran on"):
            await kept.hold()
        await kept.run_again()
        traced.wait_runs()


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A process with a socket "in repair": TCP_REPAIR needs a capability, so another option stands for it."""
    monkeypatch.setattr(standing_still, "TCP_REPAIR", socket.TCP_NODELAY)
    monkeypatch.setattr(standing_still, "TCP_REPAIR_OFF_NO_WINDOW_PROBE", 0)
    with socket.socket() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[connection.fileno()]
        )
        try:
            yield child, connection
        finally:
            child.kill()
            child.communicate()


def in_repair(connection: socket.socket) -> bool:
    return bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


def test_sockets_are_cured_before_the_tasks_run(repaired: tuple[subprocess.Popen[bytes], socket.socket]) -> None:
    child, connection = repaired
    start_ticks = procfs.read_stat(child.pid).start_ticks
    keeper.cure_before_release(child.pid, start_ticks - 1)  # the number was given out again
    assert in_repair(connection)
    keeper.cure_before_release(child.pid, start_ticks)
    assert not in_repair(connection)


def test_sockets_of_who_stands_still_stay_as_they_are(
    repaired: tuple[subprocess.Popen[bytes], socket.socket],
) -> None:
    """The migration goes on; whoever lets the tasks run cures them first."""
    child, connection = repaired
    child.send_signal(signal.SIGSTOP)
    wait(lambda: procfs.read_stat(child.pid).state == "T")
    keeper.cure_before_release(child.pid, procfs.read_stat(child.pid).start_ticks)
    assert in_repair(connection)
