"""The plainest workload: a process and all it has started. `ProcessWorkload` looks, `ProcessTree` holds.

Called by `agent` through the protocols `Workload` and `TreeHandle`. Looking reads ``/proc`` only: it never stops,
traces or signals anything. Only `ProcessTree.kill` does, by pidfd.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace

from phaul.errors import DumpError, PreflightError
from phaul.migration.facts import FileFacts, Problem, TaskFacts, WorkloadFacts
from phaul.migration.interfaces import PageImage, TreeHandle, TreeIdentity
from phaul.migration.preflight import refusal
from phaul.migration.recovery import Tree
from phaul.system import files, procfs
from phaul.system.pidfd import HeldProcess
from phaul.workloads import holdings, identity, snapshot
from phaul.workloads.memory import differing
from phaul.workloads.obstacles import obstacles_of


class ProcessWorkload:
    """Implements `phaul.migration.interfaces.Workload` for a process tree of this PID namespace. Keeps no state."""

    async def inspect(self, root_pid: int) -> WorkloadFacts:
        """Say what the tree is and holds; see `Workload.inspect`."""
        return await asyncio.to_thread(inspect, root_pid)

    async def observe(
        self, ids: Sequence[int], files: Sequence[FileFacts]
    ) -> tuple[tuple[int, ...], tuple[FileFacts, ...]]:
        """Say what of this is taken and there on this host; see `Workload.observe`."""
        return await asyncio.to_thread(observe, tuple(ids), tuple(files))

    async def hold(self, facts: WorkloadFacts) -> ProcessTree:
        """Take hold of the frozen tree; `DumpError` when it is not the one that was inspected."""
        return await asyncio.to_thread(ProcessTree.of, facts)

    async def differing(self, tree: TreeHandle, images: Sequence[PageImage]) -> tuple[str, ...]:
        """Hash the memory and compare; see `Workload.differing`."""
        return await asyncio.to_thread(differing, tree.pids, images)

    async def identify(self, root_pid: int) -> TreeIdentity:
        """Name the processes of a tree for good."""
        return await asyncio.to_thread(identity.identify, root_pid)

    async def look(self, tree: TreeIdentity) -> tuple[Tree, bool]:
        """Say what became of them."""
        return await asyncio.to_thread(identity.look, tree)

    async def finish_kill(self, tree: TreeIdentity) -> None:
        """Kill what is left of them."""
        await asyncio.to_thread(identity.finish_kill, tree)


class ProcessTree:
    """Implements `phaul.migration.interfaces.TreeHandle`.

    Invariant: holds a pidfd of every process that the tree had when it was taken hold of. The tree must be stopped
    then and until `kill`: a process that is born later is not held. Owns the pidfds until `close`.
    """

    def __init__(self, held: Sequence[HeldProcess]) -> None:
        self._held = tuple(held)

    @classmethod
    def of(cls, facts: WorkloadFacts) -> ProcessTree:
        """Walk the tree again (it may have forked since preflight) and hold every process of it. Blocks."""
        expected = facts.tasks[0].start_ticks
        held: list[HeldProcess] = []
        try:
            root = HeldProcess.open(facts.root_pid)
            held.append(root)
            if root.start_ticks != expected:
                raise DumpError(
                    f"Process {facts.root_pid} is not the one that preflight saw: it ended, and its number was reused.",
                    hint="Look for the workload's new PID and migrate that.",
                )
            held.extend(HeldProcess.open(pid) for pid in procfs.walk_tree(facts.root_pid)[1:])
        except BaseException as error:
            for process in held:
                process.close()
            if isinstance(error, OSError):
                raise DumpError(
                    f"Process {facts.root_pid} or one of its children ended while the tree was frozen.",
                    hint="Something else killed it: look into the kernel's log (out of memory?), then migrate again.",
                ) from error
            raise
        return cls(held)

    @property
    def pids(self) -> tuple[int, ...]:
        """Every process held, the root task first."""
        return tuple(process.pid for process in self._held)

    @property
    def identity(self) -> TreeIdentity:
        """The processes held, as a journal names them."""
        return TreeIdentity(identity.boot_id(), tuple((process.pid, process.start_ticks) for process in self._held))

    def kill(self) -> None:
        """Deliver SIGKILL to every process, the root first: a root that is alive then proves that none was killed."""
        for process in self._held:
            process.send(signal.SIGKILL)

    async def wait_dead(self, timeout_seconds: float) -> bool:
        """Wait until the kernel has ended every process; False when the time ran out."""
        try:
            async with asyncio.timeout(timeout_seconds):
                for process in self._held:
                    await process.wait_dead()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Give the pidfds back; a second time does nothing."""
        for process in self._held:
            process.close()


def inspect(root_pid: int) -> WorkloadFacts:
    """Read a tree and judge it. Blocks; see `Workload.inspect` for what it raises."""
    _refuse_what_is_no_workload(root_pid)
    try:
        tree = snapshot.take(root_pid)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _no_such_process(root_pid) from error
    except PermissionError as error:
        raise refusal(
            [
                Problem(
                    "not_allowed",
                    f"phaul may not look into process {root_pid}: {error.filename} cannot be read.",
                    "Run the agent as root.",
                )
            ]
        ) from error
    needed, file_problems = holdings.files_of(tree)
    return WorkloadFacts(
        root_pid=root_pid,
        tasks=tuple(
            TaskFacts(
                pid=process.pid,
                parent_pid=process.stat.parent_pid,
                command=process.stat.command,
                thread_ids=process.thread_ids,
                user_id=process.user_id,
                start_ticks=process.stat.start_ticks,
            )
            for process in tree.processes
        ),
        memory_bytes=holdings.memory_bytes_of(tree),
        files=needed,
        connections=holdings.connections_of(tree),
        problems=(*obstacles_of(tree), *file_problems),
        # criu/pstree.c, 4.2: a root task that does not lead its session is dumped with --shell-job only.
        needs_shell_job=tree.root.stat.session_id != root_pid,
        has_own_network=tree.has_own_network,
    )


def observe(ids: Sequence[int], wanted: Sequence[FileFacts]) -> tuple[tuple[int, ...], tuple[FileFacts, ...]]:
    """Look for PIDs and paths on this host. Blocks."""
    taken = tuple(sorted(procfs.taken_ids(frozenset(ids))))
    return taken, tuple(_as_it_is_here(file) for file in wanted)


def _as_it_is_here(wanted: FileFacts) -> FileFacts:
    look = files.look_at(wanted.path)
    return replace(wanted, exists=look.exists, size_bytes=look.size_bytes, mode=look.mode, build_id=look.build_id)


def _no_such_process(pid: int) -> PreflightError:
    return refusal(
        [
            Problem(
                "no_such_process",
                f"There is no process {pid} on this host.",
                "`ps -e` lists the processes; those of a container have other numbers outside of it.",
            )
        ]
    )


def _refuse_what_is_no_workload(pid: int) -> None:
    if pid <= 0:
        raise _no_such_process(pid)
    try:
        process = procfs.read_stat(pid)
        leader = int(procfs.read_status(pid)["Tgid"])
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _no_such_process(pid) from error
    name = f"Process {pid} ({process.command})"
    if leader != pid:
        problem = Problem("thread", f"{pid} is a thread of process {leader}.", f"Migrate process {leader}.")
    elif process.is_kernel_thread:
        problem = Problem(
            "kernel_thread", f"{name} is a thread of the kernel.", "Only processes of user space can be migrated."
        )
    elif process.is_dead:
        problem = Problem(
            "zombie",
            f"{name} has ended and waits to be reaped by its parent, process {process.parent_pid}.",
            "There is nothing left to migrate.",
        )
    elif pid == os.getpid():
        problem = Problem("own_agent", f"{name} is phaul's own agent.", "Name the process that shall move.")
    elif pid in procfs.ancestors(os.getpid()):
        problem = Problem(
            "ancestor_of_agent",
            f"{name} is an ancestor of phaul's own agent (process {os.getpid()}), which would have to move with it.",
            "Name a process further down, or start the agent elsewhere.",
        )
    else:
        return
    raise refusal([problem])
