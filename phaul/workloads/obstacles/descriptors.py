"""Descriptors that CRIU cannot dump, by kind. One problem of a kind for each process."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from phaul.migration.facts import Problem
from phaul.system.borrowed import Sockets, sockets_of
from phaul.system.procfs import Descriptor
from phaul.workloads.holdings import MEMORY_NAMES
from phaul.workloads.obstacles.ends import CONSOLE, PTMX, PTY_MAJORS, VIRTUAL_CONSOLES_MAJOR
from phaul.workloads.snapshot import ProcessSnapshot, TreeSnapshot, differs

# criu/files.c, 4.2: dump_one_file. bpf maps need a CRIU built with libbpf, and are refused.
SUPPORTED_ANONYMOUS = {"eventfd", "eventpoll", "signalfd", "timerfd", "inotify", "fanotify", "pidfd"}
# criu/sockets.c, 4.2: dump_socket; names as in the kernel's struct proto, without "v6".
SUPPORTED_PROTOCOLS = {"TCP", "UDP", "UDPLITE", "UDP-Lite", "RAW", "UNIX", "UNIX-STREAM", "NETLINK", "PACKET", ""}
MEMORY_DEVICES_MAJOR = 1
PLAIN_DEVICES = {3, 5, 7, 8, 9, 11}  # null, zero, full, random, urandom, kmsg: minors of major 1
CONTROLLING_TERMINAL = os.makedev(5, 0)
TIMER_CLOCKS = {"0", "1", "7"}  # CLOCK_REALTIME, _MONOTONIC, _BOOTTIME (criu/include/timerfd.h, 4.2)
NAMESPACE = re.compile(r"^(\w+):\[(\d+)\]$")
UNREAD_HINT = "Try again: what waits there is read within moments, unless the program has stopped reading."


def descriptors(tree: TreeSnapshot) -> Iterator[Problem]:
    """Say which cannot be dumped."""
    for process in tree.processes:
        # One of a kind for each process: a server has thousands of descriptors, a person has one reading.
        reported: set[str] = set()
        for problem in _judged(tree, process):
            if problem.code not in reported:
                reported.add(problem.code)
                yield problem


def _judged(tree: TreeSnapshot, process: ProcessSnapshot) -> Iterator[Problem]:
    for descriptor in process.descriptors:
        if problem := _judge_descriptor(tree, process, descriptor) or _judge_mount(tree, process, descriptor):
            yield problem
    if not any(stat.S_ISSOCK(descriptor.look.st_mode) for descriptor in process.descriptors):
        return
    try:
        with sockets_of(process.pid) as sockets:
            for descriptor in process.descriptors:
                if stat.S_ISSOCK(descriptor.look.st_mode):
                    yield from _judge_content(tree, process, descriptor, sockets)
    except OSError:  # ended meanwhile
        return


def _judge_descriptor(tree: TreeSnapshot, process: ProcessSnapshot, descriptor: Descriptor) -> Problem | None:
    where = f"{process.name} holds descriptor {descriptor.number}"
    mode = descriptor.look.st_mode
    if stat.S_ISSOCK(mode):
        return _judge_path_only(where, descriptor) or _judge_socket(where, descriptor.protocol)
    if stat.S_ISFIFO(mode) and descriptor.flags & os.O_DIRECT:
        return Problem(
            "packet_pipe",
            f"{where}, a pipe that keeps packets apart (O_DIRECT), which CRIU cannot dump.",
            "Turn off what uses it in that program, then migrate again.",
        )
    if (match := NAMESPACE.match(descriptor.link)) and stat.S_ISREG(mode):
        return _judge_namespace(tree, where, match[1], int(match[2]))
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
        if kind == "timerfd" and descriptor.info.get("clockid", "0") not in TIMER_CLOCKS:
            kind = "timerfd on an alarm clock"
        if kind == "eventfd" and descriptor.info.get("eventfd-semaphore", "0") != "0":
            kind = "eventfd that counts one by one (EFD_SEMAPHORE)"
        if kind not in SUPPORTED_ANONYMOUS:
            return Problem(
                "descriptor_kind",
                f"{where} of the kind {kind}, which CRIU cannot carry.",
                f"Turn off what uses {kind.partition(' ')[0]} in that program, then migrate again.",
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


def _judge_path_only(where: str, descriptor: Descriptor) -> Problem | None:
    if not descriptor.flags & os.O_PATH:
        return None
    return Problem(
        "descriptor_kind",
        f"{where}, the path of a Unix socket ({descriptor.link}) that was opened with O_PATH, which CRIU cannot dump.",
        "Turn off what uses it in that program, then migrate again.",
    )


def _judge_namespace(tree: TreeSnapshot, where: str, kind: str, inode: int) -> Problem | None:
    # dump_one_ns_file in criu/namespaces.c, 4.2: only namespaces that a task of the tree lives in.
    if any(inode in process.namespaces.values() for process in tree.processes):
        return None
    return Problem(
        "descriptor_kind",
        f"{where} on a {kind} namespace that no process of the workload lives in.",
        "Let the program close it; container managers cannot be migrated, but what they run can be.",
    )


def _judge_mount(tree: TreeSnapshot, process: ProcessSnapshot, descriptor: Descriptor) -> Problem | None:
    """What lies on no mount that the process can reach: CRIU finds no path for it (criu/files-reg.c, 4.2)."""
    number = descriptor.info.get("mnt_id", "")
    plain = stat.S_ISREG(descriptor.look.st_mode) or stat.S_ISDIR(descriptor.look.st_mode)
    on_files = plain and descriptor.link.startswith("/") and not descriptor.link.startswith(MEMORY_NAMES)
    if not on_files or not process.mounts or not number.isdigit() or int(number) in process.mounts:
        return None
    if differs(process, tree.agent_namespaces, "mnt"):
        return None  # it is refused for that alone
    return _mount_gone(f"{process.name} holds descriptor {descriptor.number} ({descriptor.link})")


def directory_on_lost_mount(process: ProcessSnapshot) -> Iterator[Problem]:
    """The same for its working directory."""
    if process.mounts and process.directory_mount and process.directory_mount not in process.mounts:
        yield _mount_gone(f"{process.name} has its working directory")


def _mount_gone(where: str) -> Problem:
    return Problem(
        "mount_gone",
        f"{where} on a file system that is mounted nowhere: it was unmounted lazily, or is a POSIX message queue.",
        "Let the program close it (restart it, or send its reload signal), or turn off its use of message queues.",
    )


def _judge_content(
    tree: TreeSnapshot, process: ProcessSnapshot, descriptor: Descriptor, sockets: Sockets
) -> Iterator[Problem]:
    where = f"{process.name} holds descriptor {descriptor.number}"
    inode = descriptor.look.st_ino
    known = tree.internet.get(inode)
    if tree.netlink_unread.get(inode):
        yield Problem("unread_messages", f"{where}, a netlink socket with an unread answer.", UNREAD_HINT)
    if known and known.protocol == "udp" and known.sending:
        # criu/sk-inet.c, 4.2: "Can't dump corked dgram socket", for anything that is not sent yet.
        yield Problem("unsent_messages", f"{where}, a UDP socket with unsent data (UDP_CORK).", UNREAD_HINT)
    if inode in tree.unix and sockets.holds_credentials(descriptor.number):
        # criu/sk-queue.c, 4.2: "Control messages in queue, not supported"
        yield Problem(
            "unread_messages", f"{where}, a Unix socket with unread messages that name their senders.", UNREAD_HINT
        )
    if sockets.has_bpf_filter(descriptor.number):
        yield Problem(
            "socket_filter",
            f"{where}, a socket with an eBPF filter (SO_ATTACH_BPF), which CRIU cannot dump.",
            "Turn off that filter in the program, then migrate again.",
        )
    if known and known.protocol == "udp" and any(sockets.in_group(descriptor.number, *each) for each in tree.groups):
        yield Problem(
            "multicast_group",
            f"{where}, a UDP socket that has joined a multicast group, which CRIU does not carry.",
            "Turn off multicast (discovery) in that program, or restart it on the destination instead.",
        )
