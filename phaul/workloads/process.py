"""The plainest workload: a process and all it has started. `ProcessWorkload` looks; `keeping` and `held_tree` hold.

Called by `agent` through the protocol `Workload`. Looking reads ``/proc`` only: it never stops, traces or signals
anything.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_

from phaul.errors import PhaulError
from phaul.migration.facts import ConnectionFacts, FileFacts, Occupancy, Problem, TaskFacts, WorkloadFacts
from phaul.migration.interfaces import TreeHandle, TreeIdentity
from phaul.migration.page_images import Ahead, Block, HashedImage
from phaul.migration.preflight import refusal
from phaul.migration.recovery import Tree
from phaul.system import files, keeper, procfs
from phaul.system.attendants import Attendants
from phaul.workloads import holdings, identity, keeping, memory, occupancy, sample, snapshot
from phaul.workloads.ahead import hash_ahead
from phaul.workloads.keeping import ProcessKeeper
from phaul.workloads.obstacles import obstacles_of
from phaul.workloads.obstacles.ends import terminals_inside
from phaul.workloads.obstacles.tasks import leader_ended


class ProcessWorkload:
    """Implements `phaul.migration.interfaces.Workload` for a process tree of this PID namespace. Keeps no state."""

    def __init__(self, attendants: Attendants) -> None:
        self._attendants = attendants

    async def inspect(self, root_pid: int) -> WorkloadFacts:
        """Say what the tree is and holds; see `Workload.inspect`."""
        return await asyncio.to_thread(inspect, root_pid)

    async def observe(
        self, ids: Sequence[int], files: Sequence[FileFacts]
    ) -> tuple[tuple[int, ...], tuple[FileFacts, ...], Occupancy]:
        """Say what of this is taken and there on this host; see `Workload.observe`."""
        return await asyncio.to_thread(observe, tuple(ids), tuple(files))

    async def unaccepted(self, facts: WorkloadFacts, *, closing: bool = False) -> tuple[ConnectionFacts, ...]:
        """Look at what nobody has, at the ports where the tree listens."""
        return await asyncio.to_thread(holdings.unaccepted_of, facts, closing=closing)

    async def keeper(self, facts: WorkloadFacts) -> ProcessKeeper:
        """Start the keeper of a tree that is about to be frozen."""
        return ProcessKeeper(await self._attendants.take(keeper.__name__), facts)

    async def differing(self, pids: Sequence[int], images: Sequence[HashedImage], ahead: Ahead) -> tuple[Block, ...]:
        """Hash the memory and compare; see `Workload.differing`."""
        return await asyncio.to_thread(memory.differing, pids, images, ahead)

    async def differs(self, tree: TreeHandle, block: Block, theirs: bytes) -> bool:
        """Compare byte by byte; see `Workload.differs`."""
        return await asyncio.to_thread(memory.differs, tree.pids, block, theirs)

    async def hash_ahead(self, facts: WorkloadFacts) -> Ahead:
        """Hash a tree before its memory is sent; see `Workload.hash_ahead`."""
        over = threading.Event()
        try:
            return await asyncio.to_thread(hash_ahead, [task.pid for task in facts.tasks], over.is_set)
        finally:
            over.set()

    async def sample(self, facts: WorkloadFacts) -> tuple[bytes, ...]:
        """Read a little of its memory."""
        return await asyncio.to_thread(sample.sample, [task.pid for task in facts.tasks])

    async def identify(self, root_pid: int) -> TreeIdentity:
        """Name the processes of a tree for good."""
        return await asyncio.to_thread(identity.identify, root_pid)

    async def look(self, tree: TreeIdentity) -> tuple[Tree, bool]:
        """Say what became of them."""
        return await asyncio.to_thread(identity.look, tree)

    async def finish_kill(self, tree: TreeIdentity) -> None:
        """Kill what is left of them."""
        await asyncio.to_thread(identity.finish_kill, tree)

    async def run_again(self, tree: TreeIdentity) -> None:
        """Cure and continue what an agent and a keeper before this one have left standing still."""
        await asyncio.to_thread(keeping.run_again, tree)


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
        helper_ids=holdings.helper_ids_of(tree),
        capabilities=reduce(or_, (process.capabilities for process in tree.processes)),
        most_mappings=max(len(process.mappings) for process in tree.processes),
        most_open_files=max(process.open_files_limit for process in tree.processes),
        huge_page_bytes=sum(each.hugetlb_bytes for process in tree.processes for each in process.mappings),
        terminals=terminals_inside(tree),
        unix_names=holdings.unix_names_of(tree),
        bound_devices=holdings.bound_devices_of(tree),
        security_label=tree.root.security_label,
        addresses_of_others=holdings.addresses_of_others(tree),
        has_own_host_name=snapshot.differs(tree.root, tree.agent_namespaces, "uts"),
    )


def observe(
    ids: Sequence[int], wanted: Sequence[FileFacts]
) -> tuple[tuple[int, ...], tuple[FileFacts, ...], Occupancy]:
    """Look for PIDs and paths on this host, and for what else is in use. Blocks."""
    taken = tuple(sorted(procfs.taken_ids(frozenset(ids))))
    return taken, tuple(_as_it_is_here(file) for file in wanted), occupancy.look()


def _as_it_is_here(wanted: FileFacts) -> FileFacts:
    look = files.look_at(wanted.path)
    # Who asks is another host: opening a device is an act of its own, and a device has no locks that matter.
    locked = wanted.locked and stat.S_ISREG(look.mode) and files.is_locked(wanted.path)
    # Worth reading only where it could be the same file.
    same = wanted.build_id.startswith(files.HASH_PREFIX) and look.size_bytes == wanted.size_bytes
    build_id = files.content_id(wanted.path, look) if same else look.build_id
    seen = replace(wanted, exists=look.exists, size_bytes=look.size_bytes, mode=look.mode, build_id=build_id)
    return replace(seen, locked=locked)


def _no_such_process(pid: int) -> PhaulError:
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
    elif process.is_dead and len(procfs.thread_ids(pid)) > 1:
        problem = leader_ended(name)
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
