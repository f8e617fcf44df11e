"""The keeper and the standstill on real processes: children of this test, held by a tracer in CRIU's place."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from phaul.errors import DumpError
from phaul.system import keeper, procfs, standing_still
from phaul.system.attendants import Attendants
from phaul.system.pidfd import HeldProcess
from phaul.workloads import identity
from phaul.workloads.keeping import ProcessKeeper, run_again
from phaul.workloads.process import inspect

WAIT_SECONDS = 20.0
QUIET_SECONDS = 0.05  # a workload that counts every millisecond and does not in this time stands still

WORKLOAD = """
import os, sys, threading, time
def count(file):
    number = 0
    while True:
        number += 1
        file.seek(0)
        file.write(f"{number:12d}")
        file.flush()
        time.sleep(0.001)
if int(sys.argv[2]) and os.fork() == 0:
    sys.argv[1] += ".child"
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
with open(sys.argv[1], "w") as file:
    count(file)
"""

# Seizes as CRIU does (criu/seize.c, 4.2): PTRACE_SEIZE and PTRACE_INTERRUPT of every thread. "detach" lets go nicely.
TRACER = """
import ctypes, os, subprocess, sys
SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None):
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdin=subprocess.DEVNULL, start_new_session=True)
print(child.pid, flush=True)
for line in sys.stdin:
    processes, wanted = [child.pid], []
    for each in processes:
        for thread in os.listdir(f"/proc/{each}/task"):
            wanted.append(int(thread))
            processes += map(int, open(f"/proc/{each}/task/{thread}/children").read().split())
    for thread in wanted:
        if line == "seize\\n":
            ptrace(SEIZE, thread)
            ptrace(INTERRUPT, thread)
            os.waitpid(thread, WALL)
        else:
            ptrace(DETACH, thread)
    print("done", flush=True)
"""


class Traced:
    """A workload with a child, and the tracer that has started it. Both are killed at the end."""

    def __init__(self, directory: Path, *, child: bool) -> None:
        self._count = directory / "count"
        self._tracer = subprocess.Popen(
            [sys.executable, "-c", TRACER, WORKLOAD, str(self._count), str(int(child))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._tracer.stdout
        self.pid = int(self._tracer.stdout.readline())
        self.counts = [self._count, *([directory / "count.child"] if child else [])]
        wait(lambda: all(count.exists() and count.read_text() for count in self.counts))
        self.pids = procfs.walk_tree(self.pid)
        assert len(self.pids) == len(self.counts)
        self.held = [HeldProcess.open(pid) for pid in self.pids]

    def tell(self, word: str) -> None:
        """Let the tracer seize or detach."""
        assert self._tracer.stdin and self._tracer.stdout
        self._tracer.stdin.write(word + "\n")
        self._tracer.stdin.flush()
        assert self._tracer.stdout.readline() == "done\n"

    @property
    def tracer_pid(self) -> int:
        return self._tracer.pid

    def kill_tracer(self) -> None:
        """What happens to a CRIU."""
        self._tracer.kill()
        self._tracer.wait()

    def runs(self) -> list[bool]:
        """Which processes run, the root first."""
        before = [count.read_text() for count in self.counts]
        time.sleep(QUIET_SECONDS)
        return [count.read_text() != old for count, old in zip(self.counts, before, strict=True)]

    def wait_runs(self) -> None:
        wait(lambda: all(self.runs()))

    def state(self) -> str:
        return procfs.read_stat(self.pid).state

    def end(self) -> None:
        for held in self.held:
            held.send(signal.SIGKILL)
            held.close()
        self.kill_tracer()
        for stream in (self._tracer.stdin, self._tracer.stdout):
            assert stream
            stream.close()


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    workload = Traced(tmp_path, child=True)
    yield workload
    workload.end()


@asynccontextmanager
async def keeping(traced: Traced) -> AsyncIterator[ProcessKeeper]:
    kept = ProcessKeeper(await Attendants().take(keeper.__name__), await asyncio.to_thread(inspect, traced.pid))
    try:
        await kept.ready()
        yield kept
    finally:
        await kept.close()


def agent_dies(kept: ProcessKeeper) -> None:
    """Its descriptors close, and it says nothing any more."""
    kept._socket.close()


async def ended(kept: ProcessKeeper) -> int:
    async with asyncio.timeout(WAIT_SECONDS):
        return await kept._child.wait()


async def test_nobody_runs_when_the_tracer_is_killed_until_told_so(traced: Traced) -> None:
    async with keeping(traced) as kept:
        traced.tell("seize")
        tree = await kept.hold()
        assert tree.stands_still()
        before = [count.read_text() for count in traced.counts]
        traced.kill_tracer()
        wait(lambda: traced.state() == "T")
        assert not any(traced.runs())
        assert [count.read_text() for count in traced.counts] == before  # not for a moment
        assert tree.stands_still()
        tree.release()  # comes too late, and must not let it run uncured
        assert not any(traced.runs())
        await kept.run_again()
        traced.wait_runs()
        assert not tree.stands_still()


async def test_on_the_normal_way_back_nobody_is_ever_stopped(traced: Traced) -> None:
    async with keeping(traced) as kept:
        traced.tell("seize")
        tree = await kept.hold()
        tree.release()
        assert not any(standing_still.is_stopped(pid) for pid in traced.pids)
        traced.tell("detach")
        traced.wait_runs()
        await kept.run_again()
        assert all(traced.runs())
        assert await asyncio.wait_for(_no_stop_was_seen(kept), WAIT_SECONDS)


async def _no_stop_was_seen(kept: ProcessKeeper) -> bool:
    return kept._tree is not None and not kept._tree.stands_still()


async def test_the_keeper_lets_it_run_when_the_agent_dies(traced: Traced) -> None:
    async with keeping(traced) as kept:
        traced.tell("seize")
        await kept.hold()
        agent_dies(kept)
        await asyncio.sleep(0.1)
        assert kept._child.returncode is None, "the tasks are traced still"
        assert not any(traced.runs())
        traced.tell("detach")
        assert await ended(kept) == 0
        traced.wait_runs()


async def test_the_keeper_lets_it_run_when_agent_and_tracer_die(traced: Traced) -> None:
    async with keeping(traced) as kept:
        traced.tell("seize")
        await kept.hold()
        traced.kill_tracer()
        agent_dies(kept)
        assert await ended(kept) == 0
        traced.wait_runs()


async def test_the_keeper_touches_nothing_after_a_farewell(traced: Traced) -> None:
    async with keeping(traced) as kept:
        traced.tell("seize")
        await kept.hold()
    assert kept._child.returncode == 0
    traced.kill_tracer()
    wait(lambda: traced.state() == "T")
    assert not any(traced.runs())


async def test_the_keeper_leaves_alone_what_is_left_of_a_killed_tree(traced: Traced) -> None:
    async with keeping(traced) as kept:
        traced.tell("seize")
        await kept.hold()
        traced.held[0].send(signal.SIGKILL)
        traced.kill_tracer()
        wait(lambda: traced.held[0].is_dead())
        agent_dies(kept)
        assert await ended(kept) == 0
        assert not any(traced.runs())


async def test_the_keeper_outlives_the_signals_of_a_service_that_stops(traced: Traced) -> None:
    async with keeping(traced) as kept:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(kept.pid, number)
        assert os.getsid(kept.pid) == kept.pid
        traced.tell("seize")
        await kept.hold()
        traced.kill_tracer()
        agent_dies(kept)
        assert await ended(kept) == 0
        traced.wait_runs()


async def test_without_a_keeper_nobody_is_stopped(traced: Traced) -> None:
    async with keeping(traced) as kept:
        os.kill(kept.pid, signal.SIGKILL)
        await ended(kept)
        traced.tell("seize")
        with pytest.raises(DumpError, match="watches over"):
            await kept.hold()
        traced.tell("detach")
        traced.wait_runs()


async def test_who_was_stopped_before_stays_so(traced: Traced) -> None:
    traced.held[1].send(signal.SIGSTOP)
    wait(lambda: procfs.read_stat(traced.pids[1]).state == "T")
    async with keeping(traced) as kept:
        traced.tell("seize")
        tree = await kept.hold()
        tree.release()
        traced.tell("detach")
        await kept.run_again()
        wait(lambda: traced.runs() == [True, False])
    async with keeping(traced) as kept:
        agent_dies(kept)
        await ended(kept)
        assert traced.runs() == [True, False]


async def test_a_restarted_agent_lets_it_run(traced: Traced) -> None:
    tree = identity.identify(traced.pid)
    async with keeping(traced) as kept:
        traced.tell("seize")
        await kept.hold()
        os.kill(kept.pid, signal.SIGKILL)
        agent_dies(kept)
        traced.kill_tracer()
        wait(lambda: traced.state() == "T")
        assert not any(traced.runs())
    another = type(tree)(tree.boot_id, ((traced.pid, tree.tasks[0][1] - 1),))
    run_again(another)  # the number was given out again
    assert not any(traced.runs())
    run_again(tree)
    traced.wait_runs()
    run_again(tree)
    assert all(traced.runs())


def test_sockets_of_another_process_are_cured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP_REPAIR needs a capability, so another option stands for it; the real one is tried in tests/lab."""
    monkeypatch.setattr(standing_still, "TCP_REPAIR", socket.TCP_NODELAY)
    monkeypatch.setattr(standing_still, "TCP_REPAIR_OFF_NO_WINDOW_PROBE", 0)
    kinds = [(socket.AF_INET, socket.SOCK_STREAM)] * 3 + [(socket.AF_INET, socket.SOCK_DGRAM)]
    sockets = [socket.socket(*kind) for kind in [*kinds, (socket.AF_UNIX, socket.SOCK_STREAM)]]
    for each in sockets[:2]:
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[each.fileno() for each in sockets]
    )
    held = HeldProcess.open(child.pid)
    try:
        assert standing_still.end_repair(held.fileno(), child.pid) == 2
        assert not any(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets[:3])
        assert standing_still.end_repair(held.fileno(), child.pid) == 0
    finally:
        for each in sockets:
            each.close()
        child.communicate(b"\n")
        child.wait()
        assert standing_still.end_repair(held.fileno(), child.pid) == 0
        held.close()


@pytest.mark.parametrize("farewell", [True, False])
def test_a_tree_of_many_processes_is_handed_over(farewell: bool) -> None:
    agent, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    given: list[list[keeper.Task] | None] = []
    thread = threading.Thread(target=lambda: given.append(keeper.wait_for_end(other, [])))
    thread.start()
    pidfd = os.pidfd_open(os.getpid())
    tasks = [keeper.Task(number, pidfd, ours=number % 3 > 0) for number in range(1, 451)]
    with agent, other:
        assert agent.recv(100) == keeper.READY
        for first in range(0, len(tasks), keeper.TASKS_A_MESSAGE):
            data, descriptors = keeper.as_message(tasks[first : first + keeper.TASKS_A_MESSAGE])
            socket.send_fds(agent, [data], descriptors)
        if farewell:
            agent.send(keeper.FAREWELL)
        agent.shutdown(socket.SHUT_RDWR)
        thread.join(WAIT_SECONDS)
    os.close(pidfd)
    (taken,) = given
    if farewell:
        assert taken is None
        return
    assert taken is not None
    assert [(task.pid, task.ours) for task in taken] == [(task.pid, task.ours) for task in tasks]
    assert not any(keeper.is_dead(task) for task in taken)
    for task in taken:
        os.close(task.pidfd)
