"""What keeps a tree from being dumped or restored, as far as the source alone can see it: one `Problem` for each.

Called by `workloads.process` with a `TreeSnapshot`. Everything here certainly fails at the freeze or in the restore,
with CRIU 4.2 (criu/files.c, sk-unix.c, tty.c, cr-dump.c), so it is said before anything is touched. Reads only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from phaul.migration.facts import Problem
from phaul.system import procfs
from phaul.system.procfs import Descriptor
from phaul.workloads.holdings import socket_inodes
from phaul.workloads.snapshot import ProcessSnapshot, TreeSnapshot, differs

Holders = Callable[[frozenset[str], frozenset[int]], dict[str, list[int]]]

CAPTION_LIMIT = 3  # how many of a kind a message names before "and N more"

# criu/files.c, 4.2: dump_one_file. bpf maps need a CRIU built with libbpf, and are refused.
SUPPORTED_ANONYMOUS = {"eventfd", "eventpoll", "signalfd", "timerfd", "inotify", "pidfd"}
# criu/sockets.c, 4.2: dump_socket; names as in the kernel's struct proto, without "v6".
SUPPORTED_PROTOCOLS = {"TCP", "UDP", "UDPLITE", "UDP-Lite", "RAW", "UNIX", "UNIX-STREAM", "NETLINK", "PACKET", ""}
MEMORY_DEVICES_MAJOR = 1
PLAIN_DEVICES = {3, 5, 7, 8, 9, 11}  # null, zero, full, random, urandom, kmsg: minors of major 1
PTMX = os.makedev(5, 2)
CONTROLLING_TERMINAL = os.makedev(5, 0)
CONSOLE = os.makedev(5, 1)
VIRTUAL_CONSOLES_MAJOR = 4
PTY_MAJORS = range(136, 144)  # Unix98 pty slaves (Documentation/admin-guide/devices.txt)
OWN_NAMESPACES = ("mnt", "pid", "user", "ipc")


def obstacles_of(tree: TreeSnapshot, holders: Holders = procfs.holders_of) -> tuple[Problem, ...]:
    """Say what keeps this tree from going; `holders` finds out who else holds a pipe or a socket."""
    return (
        *_namespaces(tree),
        *_tracers(tree),
        *_terminals(tree),
        *_shared_memory(tree),
        *_descriptors(tree),
        *_pipes(tree, holders),
        *_unix_sockets(tree, holders),
    )


def listed(items: list[str]) -> str:
    """Join the first few and say how many more there are."""
    rest = len(items) - CAPTION_LIMIT
    return ", ".join(items[:CAPTION_LIMIT]) + (f" and {rest} more" if rest > 0 else "")


def _using(users: list[str]) -> str:
    return f"{listed(users)} {'uses' if len(users) == 1 else 'use'}"


def _namespaces(tree: TreeSnapshot) -> Iterator[Problem]:
    if tree.has_own_network:
        yield Problem(
            "own_network_namespace",
            f"{tree.root.name} lives in a network namespace of its own, which phaul cannot move yet.",
            "Start it in the host's network namespace (for a systemd unit: without PrivateNetwork=).",
        )
    for process in tree.processes:
        names = [name for name in OWN_NAMESPACES if differs(process, tree.agent_namespaces, name)]
        if names:
            words = {"mnt": "mount", "pid": "PID", "user": "user", "ipc": "IPC"}
            yield Problem(
                "own_namespaces",
                f"{process.name} lives in {' and '.join(words[name] for name in names)} namespaces of its own, as "
                "containers and sandboxed services do, which phaul cannot move yet.",
                "Start it outside a container (for a systemd unit: without PrivateTmp=, ProtectSystem= and the like).",
            )
            return


def _tracers(tree: TreeSnapshot) -> Iterator[Problem]:
    for process in tree.processes:
        if process.tracer_pid:
            yield Problem(
                "traced",
                f"{process.name} is traced by process {process.tracer_pid}, and only one tracer can hold a process.",
                f"Detach the debugger or strace (process {process.tracer_pid}), then migrate again.",
            )


def _terminals(tree: TreeSnapshot) -> Iterator[Problem]:
    """A terminal whose other end (the emulator, sshd) stays behind: CRIU finds it dangling (criu/tty.c, 4.2)."""
    inside = {
        int(descriptor.info["tty-index"])
        for process in tree.processes
        for descriptor in process.descriptors
        if descriptor.look.st_rdev == PTMX and "tty-index" in descriptor.info
    }
    users: list[str] = []
    names: set[str] = set()
    for process in tree.processes:
        held = {
            name
            for descriptor in process.descriptors
            if stat.S_ISCHR(descriptor.look.st_mode)
            and (name := _terminal_outside(descriptor.look.st_rdev, inside, descriptor.link))
        }
        if process.stat.terminal:
            major, minor = procfs.terminal_device(process.stat.terminal)
            guess = f"/dev/pts/{(major - PTY_MAJORS.start) * 256 + minor}" if major in PTY_MAJORS else "a console"
            if name := _terminal_outside(os.makedev(major, minor), inside, guess):
                held.add(name)
        if held:
            users.append(process.name)
            names |= held
    if users:
        yield Problem(
            "terminal",
            f"{_using(users)} {listed(sorted(names))}, a terminal whose other end stays on this host.",
            "Start it without a terminal: as a systemd unit, or with `setsid COMMAND </dev/null >LOG 2>&1 &`.",
        )


def _terminal_outside(device: int, inside: set[int], name: str) -> str:
    major, minor = os.major(device), os.minor(device)
    if major in PTY_MAJORS:
        return "" if (major - PTY_MAJORS.start) * 256 + minor in inside else name
    return name if device == CONSOLE or major == VIRTUAL_CONSOLES_MAJOR else ""


def _shared_memory(tree: TreeSnapshot) -> Iterator[Problem]:
    users = [p.name for p in tree.processes if any(mapping.path.startswith("/SYSV") for mapping in p.mappings)]
    if users:
        # check_sysvipc_map_dump in criu/cr-dump.c, 4.2: only with an IPC namespace of its own.
        yield Problem(
            "sysv_shared_memory",
            f"{_using(users)} System V shared memory, which cannot be dumped outside an IPC namespace of its own.",
            "Configure it for POSIX or anonymous shared memory (PostgreSQL: shared_memory_type = mmap).",
        )


def _descriptors(tree: TreeSnapshot) -> Iterator[Problem]:
    reported: set[tuple[int, str]] = set()
    for process in tree.processes:
        for descriptor in process.descriptors:
            problem = _judge_descriptor(tree, process, descriptor)
            # One of a kind for each process: a server has thousands of descriptors, a person has one reading.
            if problem and (process.pid, problem.code) not in reported:
                reported.add((process.pid, problem.code))
                yield problem


def _judge_descriptor(tree: TreeSnapshot, process: ProcessSnapshot, descriptor: Descriptor) -> Problem | None:
    where = f"{process.name} holds descriptor {descriptor.number}"
    mode = descriptor.look.st_mode
    if stat.S_ISSOCK(mode):
        return _judge_socket(where, descriptor.protocol)
    if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not _is_known_device(descriptor.look.st_rdev)):
        return Problem(
            "device",
            f"{where} on the device {descriptor.link}, which cannot be dumped.",
            "Stop what uses the device, then migrate again.",
        )
    if descriptor.link.startswith(("anon_inode:", "pidfd:", "/dmabuf:")):
        kind = descriptor.link.removeprefix("anon_inode:").lstrip("/").partition(":")[0].strip("[]")
        if kind == "pidfd":
            return _judge_pidfd(tree, where, descriptor)
        if kind == "io_uring":
            return Problem(
                "io_uring",
                f"{where}, an io_uring, which CRIU cannot dump (criu issue 2131).",
                "Start the program with its io_uring support turned off.",
            )
        if kind not in SUPPORTED_ANONYMOUS:
            return Problem(
                "descriptor_kind",
                f"{where} of the kind {kind}, which CRIU cannot dump.",
                f"Turn off what uses {kind} in that program, then migrate again.",
            )
    return None


def _judge_socket(where: str, protocol: str) -> Problem | None:
    plain = protocol.removesuffix("v6")
    if plain == "MPTCP":
        return Problem(
            "mptcp_socket",
            f"{where}, a Multipath TCP socket, which CRIU cannot dump (criu issue 2655).",
            "Start it with plain TCP: for Go programs set GODEBUG=multipathtcp=0, else net.mptcp.enabled=0.",
        )
    if plain not in SUPPORTED_PROTOCOLS:
        return Problem(
            "socket_kind",
            f"{where}, a socket of the kind {protocol}, which CRIU cannot dump.",
            f"Turn off what uses {protocol} in that program, then migrate again.",
        )
    return None


def _is_known_device(device: int) -> bool:
    major, minor = os.major(device), os.minor(device)
    if major == MEMORY_DEVICES_MAJOR:
        return minor in PLAIN_DEVICES
    # Terminals are judged as a whole, above. /dev/net/tun needs a network namespace of its own (criu/tun.c, 4.2).
    return device in (PTMX, CONTROLLING_TERMINAL, CONSOLE) or major in PTY_MAJORS or major == VIRTUAL_CONSOLES_MAJOR


def _judge_pidfd(tree: TreeSnapshot, where: str, descriptor: Descriptor) -> Problem | None:
    pid = int(descriptor.info.get("Pid", "-1"))
    if pid <= 0 or pid in tree.pids:  # -1: that process has ended (proc_pid_fdinfo(5))
        return None
    return Problem(
        "descriptor_kind",
        f"{where}, a pidfd of process {pid}, which stays on this host.",
        f"Migrate the tree that process {pid} belongs to as a whole, or let the program close that pidfd.",
    )


def _pipes(tree: TreeSnapshot, holders: Holders) -> Iterator[Problem]:
    users: dict[str, tuple[ProcessSnapshot, int]] = {}
    for process in tree.processes:
        for descriptor in process.descriptors:
            if stat.S_ISFIFO(descriptor.look.st_mode):
                users.setdefault(descriptor.link, (process, descriptor.number))
    outside = holders(frozenset(users), tree.pids) if users else {}
    ends = [
        f"descriptor {users[link][1]} of {users[link][0].name}, held by {_named(pids)} too"
        for link, pids in outside.items()
    ]
    if ends:
        yield Problem(
            "pipe_leaves_tree",
            f"A pipe's other end would stay on this host: {listed(ends)}.",
            "Start it with files or /dev/null in place of that pipe, or migrate the process that started both.",
        )


def _unix_sockets(tree: TreeSnapshot, holders: Holders) -> Iterator[Problem]:
    mine = socket_inodes(tree)
    leaving = {
        inode: peer
        for inode in mine
        if (known := tree.unix.get(inode)) and (peer := known.peer_inode) and peer not in mine
    }
    if not leaving:
        return
    outside = holders(frozenset(f"socket:[{peer}]" for peer in leaving.values()), tree.pids)
    ends: list[str] = []
    journal = False
    for inode, peer in leaving.items():
        process, number = mine[inode]
        name = tree.unix[peer].name if peer in tree.unix else ""
        journal = journal or name.startswith(("/run/systemd/journal/", "/dev/log"))
        to = " ".join(part for part in (name, f"of {_named(outside.get(f'socket:[{peer}]', []))}") if part)
        ends.append(f"descriptor {number} of {process.name} to {to}")
    yield Problem(
        "unix_socket_leaves_tree",
        f"A Unix socket is connected to a process that would stay on this host: {listed(ends)}.",
        "Let it log to a file in place of the journal (systemd: StandardOutput=append:FILE, StandardError=inherit)."
        if journal
        else "End that connection, or migrate the tree that holds both ends.",
    )


def _named(pids: list[int]) -> str:
    if not pids:
        return "nobody we can see"
    names: list[str] = []
    for pid in pids:
        try:
            names.append(f"process {pid} ({procfs.read_stat(pid).command})")
        except OSError:  # ended meanwhile
            names.append(f"process {pid}")
    return listed(names)
