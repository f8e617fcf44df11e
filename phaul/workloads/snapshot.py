"""What a process tree is and holds at one moment: read from ``/proc`` in one go, then judged without touching it.

Called by `workloads.process`. Reads only; blocks (10 ms a GiB of memory), so it runs in a thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from phaul.system import control_groups, namespaces, procfs, sharing, sockets, sysv
from phaul.system.procfs import Descriptor, Mapping, MountEntry, ProcessStat
from phaul.system.sharing import Shared
from phaul.system.sockets import InternetSocket, UnixSocket
from phaul.system.sysv import Segment

# criu/cr-dump.c, 4.2, dump_task_kobj_ids: these may belong to one process only. Signal handlers come with memory.
NOT_TO_SHARE = {Shared.MEMORY: "memory", Shared.DIRECTORIES: "the working directory"}
# CRIU dumps them once for a process, from its first thread.
NOT_TO_PART = {Shared.DESCRIPTORS: "descriptors", Shared.DIRECTORIES: "working directory"}
LOOKS = 10
LOOK_SECONDS = 0.01
SYSTEM_V = (sysv.semaphores_used_by, sysv.queues_used_by)


@dataclass(frozen=True, slots=True)
class ThreadSnapshot:
    """What of a thread may be other than of its process; its first thread is one of them."""

    tid: int
    stat: ProcessStat
    apart: tuple[str, ...] = ()  # what it does not share with its process: "network namespace", "descriptors", ...


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
    threads: tuple[ThreadSnapshot, ...] = ()
    mounts: dict[int, MountEntry] = field(default_factory=dict)
    directory_mount: int = 0  # the mount that the working directory lies on
    users: tuple[int, ...] = ()  # real, effective, saved user and the same of groups
    capabilities: int = 0  # permitted
    open_files_limit: int = 0
    processors: str = ""  # those that it may run on, as the kernel lists them
    personality: int = 0
    security_label: str = ""
    frozen: bool = False
    shares: tuple[str, ...] = ()  # what it shares with another process of the tree

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
    netlink_unread: dict[int, int] = field(default_factory=dict)
    groups: tuple[tuple[str, str], ...] = ()  # multicast groups of IPv4 that the host has joined, with the device
    tracees: dict[int, int] = field(default_factory=dict)  # outside the tree: who is traced, by whom of the tree
    semaphores: tuple[int, ...] = ()
    message_queues: tuple[int, ...] = ()
    network_neighbours: tuple[int, ...] = ()  # who else is in a network namespace that is not the agent's
    ipc_neighbours: tuple[int, ...] = ()  # and in such an IPC namespace
    segments: tuple[Segment, ...] = ()  # System V shared memory of such a namespace, which travels

    @property
    def root(self) -> ProcessSnapshot:
        """The root task."""
        return self.processes[0]

    @property
    def pids(self) -> frozenset[int]:
        """Every process."""
        return frozenset(process.pid for process in self.processes)

    @property
    def has_own_ipc(self) -> bool:
        """Whether its root lives in another IPC namespace than the agent."""
        return differs(self.root, self.agent_namespaces, "ipc")

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
    tree = TreeSnapshot(_with_shares(processes), agent_namespaces)
    semaphores, queues = ((), ()) if tree.has_own_ipc else (used_by(tree.pids) for used_by in SYSTEM_V)
    network, ipc = (_neighbours(tree, name) for name in ("net", "ipc"))
    return replace(
        tree,
        internet=_internet_sockets(tree),
        unix=_unix_sockets(tree),
        netlink_unread=sockets.netlink_unread(root_pid),
        groups=sockets.multicast_groups(root_pid),
        network_neighbours=network,
        ipc_neighbours=ipc,
        segments=_segments(root_pid) if tree.has_own_ipc else (),
        tracees=_traced_by(tree.pids),
        semaphores=semaphores,
        message_queues=queues,
    )


def _internet_sockets(tree: TreeSnapshot) -> dict[int, InternetSocket]:
    """Those of the tree's network; of its UDP sockets only what is held back (UDP_CORK) counts as waiting to be sent.

    A datagram on its way to the device is in its socket for some microseconds, one that is held back in every look.
    """
    mine = {each.look.st_ino for process in tree.processes for each in process.descriptors}

    def sending(found: dict[int, InternetSocket]) -> set[int]:
        return {inode for inode, each in found.items() if inode in mine and each.protocol == "udp" and each.sending}

    found = sockets.internet_sockets(tree.root.pid)
    held_back = sending(found)
    for _ in range(LOOKS):
        if not held_back:
            break
        time.sleep(LOOK_SECONDS)
        found = sockets.internet_sockets(tree.root.pid)
        held_back &= sending(found)
    return {
        inode: replace(each, sending=0) if each.protocol == "udp" and inode not in held_back else each
        for inode, each in found.items()
    }


def _unix_sockets(tree: TreeSnapshot) -> dict[int, UnixSocket]:
    if not tree.has_own_network:
        return sockets.unix_sockets()
    return namespaces.inside(namespaces.network_of(tree.root.pid), sockets.unix_sockets)


def _segments(root_pid: int) -> tuple[Segment, ...]:
    return namespaces.inside(namespaces.ipc_of(root_pid), sysv.segments)


def _neighbours(tree: TreeSnapshot, name: str) -> tuple[int, ...]:
    """Give who else is in a namespace of the tree's own."""
    if not differs(tree.root, tree.agent_namespaces, name):
        return ()
    mine = tree.root.namespaces.get(name)
    found: list[int] = []
    for pid in procfs.all_pids():
        try:
            if pid not in tree.pids and procfs.read_namespaces(pid).get(name) == mine:
                found.append(pid)
        except OSError:  # ended meanwhile
            continue
    return tuple(sorted(strangers(tree, found)))


def strangers(tree: TreeSnapshot, pids: Iterable[int]) -> list[int]:
    """Leave out what the tree has started since it was looked at, and what has ended: a server forks all the time."""
    found: list[int] = []
    for pid in pids:
        try:
            if tree.root.pid not in procfs.ancestors(pid):
                found.append(pid)
        except OSError:  # ended meanwhile
            continue
    return found


def _traced_by(pids: frozenset[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for pid in procfs.all_pids():
        try:
            tracer = 0 if pid in pids else int(procfs.read_status(pid)["TracerPid"])
        except OSError:  # ended meanwhile
            continue
        if tracer in pids:
            found[pid] = tracer
    return found


def _with_shares(processes: list[ProcessSnapshot]) -> tuple[ProcessSnapshot, ...]:
    """Say of each process what it shares with its parent or with a sibling. Compares with those two kinds only."""
    pids = {process.pid for process in processes}
    elder: dict[int, int] = {}  # of each parent: the child before this one
    found: list[ProcessSnapshot] = []
    for process in processes:
        parent = process.stat.parent_pid
        others = [pid for pid in (parent, elder.get(parent, 0)) if pid in pids]
        elder[parent] = process.pid
        shared = (
            []
            if process.stat.is_dead
            else [
                words
                for what, words in NOT_TO_SHARE.items()
                if any(sharing.is_shared(what, process.pid, other) for other in others)
            ]
        )
        found.append(replace(process, shares=tuple(shared)))
    return tuple(found)


def _threads(pid: int, tids: tuple[int, ...], namespaces: dict[str, int]) -> tuple[ThreadSnapshot, ...]:
    found: list[ThreadSnapshot] = []
    for tid in tids:
        apart: list[str] = []
        try:
            stat = procfs.read_thread_stat(pid, tid)
            if tid != pid:
                apart += [words for what, words in NOT_TO_PART.items() if sharing.differs(what, pid, tid)]
                theirs = procfs.read_thread_namespaces(pid, tid)
                apart += [f"{name} namespace" for name, inode in theirs.items() if namespaces.get(name, inode) != inode]
        except OSError:  # ended meanwhile
            continue
        found.append(ThreadSnapshot(tid, stat, tuple(apart)))
    return tuple(found)


def _process(pid: int) -> ProcessSnapshot:
    stat = procfs.read_stat(pid)
    tids = procfs.thread_ids(pid)
    if stat.is_dead:
        return ProcessSnapshot(stat, tids)
    status = procfs.read_status(pid)
    namespaces = procfs.read_namespaces(pid)
    return ProcessSnapshot(
        stat=stat,
        thread_ids=tids,
        user_id=int(status["Uid"].split()[1]),
        tracer_pid=int(status["TracerPid"]),
        namespaces=namespaces,
        executable=procfs.read_link(pid, "exe"),
        working_directory=procfs.read_link(pid, "cwd"),
        root_directory=procfs.read_link(pid, "root"),
        mappings=procfs.read_smaps(pid),
        descriptors=tuple(procfs.read_descriptors(pid)),
        threads=_threads(pid, tids, namespaces),
        mounts=procfs.read_mounts(pid),
        directory_mount=procfs.mount_of(pid, "cwd"),
        users=tuple(int(number) for key in ("Uid", "Gid") for number in status[key].split()[:3]),
        capabilities=int(status.get("CapPrm", "0"), 16),
        open_files_limit=procfs.read_open_files_limit(pid),
        processors=status.get("Cpus_allowed_list", ""),
        personality=procfs.read_personality(pid),
        security_label=procfs.read_security_label(pid),
        frozen=control_groups.is_frozen(pid),
    )
