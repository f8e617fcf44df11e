"""The agent's side of the keeper (`system.keeper`): a frozen tree that stands still, whoever of us dies.

At CRIU's gate the tasks are in its hands. Should CRIU be killed there, the kernel lets go of them as they are, their
connections in repair mode, and their next recv fails. So each task gets a SIGSTOP at the gate: it stays pending while
CRIU traces the task, is not in the images (which are complete by then), and is what the task takes before it executes
an instruction of its own. See docs/design/0007-keeper.md.

Called by the coordinator and settlement through `migration.interfaces`. Signals by pidfd only, and never kills.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import closing

import structlog

from phaul.errors import DumpError
from phaul.migration.facts import WorkloadFacts
from phaul.migration.interfaces import TreeIdentity
from phaul.system import keeper, process, procfs
from phaul.system.attendants import Attendant
from phaul.system.pidfd import HeldProcess
from phaul.system.standing_still import end_repair, is_stopped
from phaul.workloads.held_tree import ProcessTree

log = structlog.get_logger(__name__)

READY_SECONDS = 10.0  # for a Python to start on a busy host; before the freeze, so nobody stands still meanwhile
END_SECONDS = 5.0  # for the keeper to end after the farewell


class ProcessKeeper:
    """Implements `phaul.migration.interfaces.Keeper`. Owns its attendant, a `system.keeper`, until `close`."""

    def __init__(self, attendant: Attendant, facts: WorkloadFacts) -> None:
        self._facts = facts
        self._stopped_before = frozenset(task.pid for task in facts.tasks if is_stopped(task.pid))
        self._tree: ProcessTree | None = None
        self._child, self._socket = attendant.child, attendant.socket

    @property
    def pid(self) -> int:
        """The keeper's PID."""
        return self._child.pid

    async def watch(self, engine_pid: int) -> None:
        """See `Keeper.watch`."""
        root = self._facts.tasks[0]
        loop = asyncio.get_running_loop()
        asked = keeper.WATCH + keeper.WATCHED.pack(engine_pid, root.pid, root.start_ticks)
        try:
            async with asyncio.timeout(READY_SECONDS):
                await loop.sock_sendall(self._socket, asked)
                word = await loop.sock_recv(self._socket, len(keeper.NOT_WATCHING))
        except (TimeoutError, OSError):
            word = b""
        if word != keeper.WATCHING:
            log.warning("keeper.does_not_watch", engine_pid=engine_pid, root_pid=root.pid)

    async def ready(self) -> None:
        """See `Keeper.ready`."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                word = await asyncio.get_running_loop().sock_recv(self._socket, len(keeper.READY))
        except (TimeoutError, OSError):
            word = b""
        if word != keeper.READY:
            raise DumpError(
                "The process that watches over the workload while it is frozen could not be started.",
                hint=f"Try by hand: `{sys.executable} -I -m {keeper.__name__} 0 </dev/null` says why.",
            )

    async def hold(self) -> ProcessTree:
        """See `Keeper.hold`."""
        self._tree = tree = await asyncio.to_thread(ProcessTree.of, self._facts)
        try:
            self._hand_over(tree)
        except OSError as error:
            raise DumpError(
                "The process that watches over the workload while it is frozen has ended.",
                hint="Something killed it: look into the kernel's log (out of memory?), then migrate again.",
            ) from error
        # Only now: nobody is stopped whom the keeper could not continue.
        tree.stop(self._stopped_before)
        if not tree.is_traced():
            raise DumpError("the workload ran on behind its images: its CRIU was killed as the dump ended")
        return tree

    async def run_again(self) -> None:
        """See `Keeper.run_again`."""
        if self._tree is not None:
            cured = await asyncio.to_thread(self._tree.run_again)
        else:
            cured = await asyncio.to_thread(_cure, self._facts.root_pid, self._facts.tasks[0].start_ticks)
        if cured:
            log.warning("workload.connections_cured", root_pid=self._facts.root_pid, connections=cured)

    async def close(self) -> None:
        """See `Keeper.close`."""
        try:
            self._socket.send(keeper.FAREWELL)
        except OSError:
            pass  # it has ended already, which is what a farewell is for
        self._socket.close()
        if self._tree is not None:
            self._tree.close()
        await process.wait_started(self._child, END_SECONDS)

    def _hand_over(self, tree: ProcessTree) -> None:
        tasks = [keeper.Task(pid, pidfd, ours=pid not in self._stopped_before) for pid, pidfd in tree.pidfds]
        for first in range(0, len(tasks), keeper.TASKS_A_MESSAGE):
            data, descriptors = keeper.as_message(tasks[first : first + keeper.TASKS_A_MESSAGE])
            socket.send_fds(self._socket, [data], descriptors)


def run_again(tree: TreeIdentity) -> None:
    """Cure and continue a tree that neither its agent nor its keeper could. Blocks.

    Right only for a tree that the agent before this one had frozen: whoever else has stopped it is overruled.
    """
    root_pid, start_ticks = tree.tasks[0]
    for held in _living(root_pid, start_ticks):
        with closing(held):
            keeper.continue_stopped([keeper.Task(held.pid, held.fileno(), ours=True)])


def _cure(root_pid: int, start_ticks: int) -> int:
    """End repair mode in a tree that runs; give in how many connections."""
    cured = 0
    for held in _living(root_pid, start_ticks):
        with closing(held):
            cured += end_repair(held.fileno(), held.pid)
    return cured


def _living(root_pid: int, start_ticks: int) -> Iterator[HeldProcess]:
    """Hold every process of a tree in turn; none where its root has ended."""
    try:
        if procfs.read_stat(root_pid).start_ticks != start_ticks:
            return
        pids = procfs.walk_tree(root_pid)
    except OSError:
        return
    for pid in pids:
        try:
            yield HeldProcess.open(pid)
        except OSError:
            continue  # it has ended since
