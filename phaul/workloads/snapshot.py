"""What a process tree is and holds at one moment: read from ``/proc`` in one go, then judged without touching it.

Called by `workloads.process`. Reads only; blocks (10 ms a GiB of memory), so it runs in a thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from phaul.system import procfs, sockets
from phaul.system.procfs import Descriptor, Mapping, ProcessStat
from phaul.system.sockets import InternetSocket, UnixSocket


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """One process of the tree. Of a zombie only `stat` and `thread_ids` say something."""

    stat: ProcessStat
    thread_ids: tuple[int, ...]
    user_id: int = 0
    tracer_pid: int = 0
    namespaces: dict[str, int] = field(default_factory=dict)
    executable: str = ""
    working_directory: str = ""
    root_directory: str = "/"
    mappings: tuple[Mapping, ...] = ()
    descriptors: tuple[Descriptor, ...] = ()

    @property
    def pid(self) -> int:
        """Its number in the agent's PID namespace."""
        return self.stat.pid

    @property
    def name(self) -> str:
        """How messages name it, e.g. ``process 4711 (redis-server)``."""
        return f"process {self.pid} ({self.stat.command})"


@dataclass(frozen=True, slots=True)
class TreeSnapshot:
    """A tree, root first, with the sockets of its network namespace and the namespaces of the agent that looks."""

    processes: tuple[ProcessSnapshot, ...]
    agent_namespaces: dict[str, int]
    internet: dict[int, InternetSocket] = field(default_factory=dict)
    unix: dict[int, UnixSocket] = field(default_factory=dict)

    @property
    def root(self) -> ProcessSnapshot:
        """The root task."""
        return self.processes[0]

    @property
    def pids(self) -> frozenset[int]:
        """Every process."""
        return frozenset(process.pid for process in self.processes)

    @property
    def has_own_network(self) -> bool:
        """Whether a process lives in another network namespace than the agent."""
        return any(differs(process, self.agent_namespaces, "net") for process in self.processes)


def differs(process: ProcessSnapshot, agent_namespaces: dict[str, int], name: str) -> bool:
    """Say whether a process is in another namespace of this kind than the agent; False where it could not be read."""
    theirs, ours = process.namespaces.get(name), agent_namespaces.get(name)
    return theirs is not None and ours is not None and theirs != ours


def take(root_pid: int) -> TreeSnapshot:
    """Read a tree. Raises `OSError` when the root is gone or may not be looked into; others that end are left out."""
    processes = [_process(root_pid)]
    for pid in procfs.walk_tree(root_pid)[1:]:
        try:
            processes.append(_process(pid))
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
    agent_namespaces = procfs.read_namespaces(os.getpid())
    tree = TreeSnapshot(tuple(processes), agent_namespaces)
    return TreeSnapshot(
        processes=tree.processes,
        agent_namespaces=agent_namespaces,
        internet=sockets.internet_sockets(root_pid),
        unix={} if tree.has_own_network else sockets.unix_sockets(),
    )


def _process(pid: int) -> ProcessSnapshot:
    stat = procfs.read_stat(pid)
    tids = procfs.thread_ids(pid)
    if stat.is_dead:
        return ProcessSnapshot(stat, tids)
    status = procfs.read_status(pid)
    return ProcessSnapshot(
        stat=stat,
        thread_ids=tids,
        user_id=int(status["Uid"].split()[1]),
        tracer_pid=int(status["TracerPid"]),
        namespaces=procfs.read_namespaces(pid),
        executable=procfs.read_link(pid, "exe"),
        working_directory=procfs.read_link(pid, "cwd"),
        root_directory=procfs.read_link(pid, "root"),
        mappings=procfs.read_smaps(pid),
        descriptors=tuple(procfs.read_descriptors(pid)),
    )
