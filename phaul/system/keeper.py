"""The keeper: a process that outlives the agent and sees to it that a frozen workload is not left standing still.

An attendant (`system.attendants`) of `workloads.keeping`, one a migration. The agent hands it a pidfd of every task
that it is about to stop by SIGSTOP. A farewell ends it. When the socket closes without one, the agent has died: the
keeper waits until CRIU has let go of the tasks, takes their sockets out of repair mode where CRIU has died as well,
and continues them. Standard library only. Never kills a workload.

From before the freeze on it also watches CRIU itself. Where that is killed with the tasks in its hands and no SIGSTOP
on them, in the middle of a dump or of a rollback, their sockets are taken out of repair mode before CRIU lets go: the
tasks run on and notice nothing.

On the destination one guards a restored copy instead (`system.unreleased`), asked to by GUARD and, once, RELEASE.

A workload whose root task is dead is left alone: that it was killed means that the migration was committed, and what
is left of it is the restarted agent's to finish off.
"""

from __future__ import annotations

import array
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from phaul.system.exit_stop import ExitStop
from phaul.system.memory import keep_from_oom_killer
from phaul.system.procfs import read_stat, walk_tree
from phaul.system.standing_still import end_repair, is_stopped, is_traced
from phaul.system.unreleased import UnreleasedCopy

READY = b"ready"
WATCH = b"watch"  # followed by the PIDs of CRIU and of the root task, and the root's start time, as `WATCHED`
GUARD = b"guard"  # followed by the same, of a copy that CRIU restores; the last is when CRIU began
RELEASE = b"release"  # the copy that is guarded runs from here on, whatever becomes of CRIU
RELEASED = b"released"
KILLED = b"killed"  # the answer to RELEASE where CRIU has ended before
WATCHED = struct.Struct("=iiq")
WATCHING = b"watching"
NOT_WATCHING = b"not watching"
FAREWELL = b"farewell"
LONGEST_WORD = 32
TASKS_A_MESSAGE = 200  # below SCM_MAX_FD, which is 253 (Linux, include/net/scm.h)
INT_CODE = "i"  # of `array`; a pid_t is one
LOOK_SECONDS = 0.002  # between two looks at tasks that CRIU is about to let go of
PATIENT_LOOK_SECONDS = 0.5  # after a while, when CRIU seems to hang
PATIENT_AFTER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Task:
    """One process. `ours` says that it is we who stop it; one that was stopped before shall stay so."""

    pid: int
    pidfd: int
    ours: bool


def main(argv: Sequence[str]) -> int:
    """Keep until the farewell, or to the end."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # who stops the agent must not stop this one first
    keep_from_oom_killer()
    _more_descriptors()
    watches: list[ExitStop | UnreleasedCopy] = []
    with socket.socket(fileno=int(argv[1])) as agent:
        tasks = wait_for_end(agent, watches)
    if tasks:
        continue_all(tasks)
    if tasks is not None:
        for watch in watches:
            if isinstance(watch, UnreleasedCopy):
                watch.leave_alone()
            watch.join()  # CRIU has yet to let go, and may be killed meanwhile
    return 0


def wait_for_end(agent: socket.socket, watches: list[ExitStop | UnreleasedCopy]) -> list[Task] | None:
    """Take tasks from the agent until it says farewell (None) or has died: then give them, the root first.

    What it asks to be watched is added to `watches`.
    """
    tasks: list[Task] = []
    guarded: UnreleasedCopy | None = None
    try:
        agent.send(READY)
        while True:
            data, descriptors, _, _ = socket.recv_fds(agent, TASKS_A_MESSAGE * 8, TASKS_A_MESSAGE)
            if data == FAREWELL:
                for task in tasks:
                    os.close(task.pidfd)
                return None
            if not data:
                return tasks
            if data.startswith(WATCH):
                criu_pid, root_pid, start_ticks = WATCHED.unpack(data[len(WATCH) :])
                watch = ExitStop(criu_pid, partial(cure_before_release, root_pid, start_ticks))
                watches.append(watch)
                agent.send(WATCHING if watch.begin() else NOT_WATCHING)
                continue
            if data.startswith(GUARD):
                guarded = UnreleasedCopy(*WATCHED.unpack(data[len(GUARD) :]))
                watches.append(guarded)
                agent.send(WATCHING if guarded.watch() else NOT_WATCHING)
                continue
            if data == RELEASE:
                agent.send(RELEASED if guarded is None or guarded.release() else KILLED)
                continue
            numbers = iter(array.array(INT_CODE, data))
            tasks += [
                Task(pid, pidfd, bool(ours))
                for (pid, ours), pidfd in zip(zip(numbers, numbers, strict=True), descriptors, strict=True)
            ]
    except OSError:
        return tasks


def cure_before_release(root_pid: int, start_ticks: int) -> None:
    """CRIU is about to let go of a tree: end repair mode first, if the tasks are going to run.

    They are not where a SIGSTOP waits for them: then the migration goes on, and they are going to be killed; the client
    hears nothing of a socket that ends in repair mode. A tree that was killed has its SIGSTOPs still.
    """
    try:
        if read_stat(root_pid).start_ticks != start_ticks:
            return
        pids = walk_tree(root_pid)
    except OSError:
        return
    if any(is_stopped(pid) for pid in pids):
        return
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue  # it has ended
        end_repair(pidfd, pid)
        os.close(pidfd)


def continue_all(tasks: Sequence[Task]) -> None:
    """Wait until no task is traced, cure the sockets of all, and let all run."""
    began = time.monotonic()
    while True:
        if is_dead(tasks[0]):
            return
        living = [task for task in tasks if not is_dead(task)]
        if not any(is_traced(task.pid) for task in living):
            break
        patient = time.monotonic() - began > PATIENT_AFTER_SECONDS
        time.sleep(PATIENT_LOOK_SECONDS if patient else LOOK_SECONDS)
    continue_stopped(living)


def continue_stopped(tasks: Sequence[Task]) -> int:
    """Cure the sockets of all, then continue those that we have stopped; give how many sockets were cured."""
    cured = sum(end_repair(task.pidfd, task.pid) for task in tasks)
    for task in tasks:
        if task.ours and is_stopped(task.pid):
            send_continue(task.pidfd)
    return cured


def as_message(tasks: Sequence[Task]) -> tuple[bytes, list[int]]:
    """What `wait_for_end` takes: the data, and the descriptors that go with it."""
    numbers = [number for task in tasks for number in (task.pid, int(task.ours))]
    return array.array(INT_CODE, numbers).tobytes(), [task.pidfd for task in tasks]


def send_continue(pidfd: int) -> None:
    """SIGCONT also discards a SIGSTOP that is still pending (Linux, kernel/signal.c: prepare_signal)."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    except ProcessLookupError:
        pass  # it has ended since


def is_dead(task: Task) -> bool:
    """Whether the kernel has ended a process, also where it waits to be reaped: its PID says nothing any more."""
    poll = select.poll()
    poll.register(task.pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _more_descriptors() -> None:
    """Take as many as the kernel allows: the default, 1024, is less than a tree may have processes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
