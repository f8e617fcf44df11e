"""Things that lead out of the tree: terminals, pipes and sockets whose other end, or other holder, stays behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from phaul.migration.facts import Problem, Severity
from phaul.system import procfs
from phaul.workloads.holdings import socket_inodes
from phaul.workloads.obstacles.words import listed, named, using
from phaul.workloads.snapshot import ProcessSnapshot, TreeSnapshot, strangers

Holders = Callable[[frozenset[str], frozenset[int]], dict[str, list[int]]]

PTMX = os.makedev(5, 2)
CONSOLE = os.makedev(5, 1)
VIRTUAL_CONSOLES_MAJOR = 4
PTY_MAJORS = range(136, 144)  # Unix98 pty slaves (Documentation/admin-guide/devices.txt)
PTYS_OF_A_MAJOR = 256
TALKING_STATES = ("established", "syn_sent", "close_wait", "fin_wait1", "fin_wait2")


def terminals_inside(tree: TreeSnapshot) -> tuple[int, ...]:
    """Give the numbers below /dev/pts of the terminals of which the tree has the controlling end."""
    return tuple(
        sorted(
            {
                int(descriptor.info["tty-index"])
                for process in tree.processes
                for descriptor in process.descriptors
                if descriptor.look.st_rdev == PTMX and "tty-index" in descriptor.info
            }
        )
    )


def terminals(tree: TreeSnapshot) -> Iterator[Problem]:
    """A terminal whose other end (the emulator, sshd) stays behind: CRIU finds it dangling (criu/tty.c, 4.2)."""
    inside = set(terminals_inside(tree))
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
            number = (major - PTY_MAJORS.start) * PTYS_OF_A_MAJOR + minor
            guess = f"/dev/pts/{number}" if major in PTY_MAJORS else "a console"
            if name := _terminal_outside(os.makedev(major, minor), inside, guess):
                held.add(name)
        if held:
            users.append(process.name)
            names |= held
    if users:
        yield Problem(
            "terminal",
            f"{using(users)} {listed(sorted(names))}, a terminal whose other end stays on this host.",
            "Start it without a terminal: as a systemd unit, or with `setsid COMMAND </dev/null >LOG 2>&1 &`.",
        )


def _terminal_outside(device: int, inside: set[int], name: str) -> str:
    major, minor = os.major(device), os.minor(device)
    if major in PTY_MAJORS:
        return "" if (major - PTY_MAJORS.start) * PTYS_OF_A_MAJOR + minor in inside else name
    return name if device == CONSOLE or major == VIRTUAL_CONSOLES_MAJOR else ""


def pipes(tree: TreeSnapshot, holders: Holders) -> Iterator[Problem]:
    """A pipe's other end that stays behind: what is written there would reach nobody."""
    users: dict[str, tuple[ProcessSnapshot, int]] = {}
    for process in tree.processes:
        for descriptor in process.descriptors:
            if stat.S_ISFIFO(descriptor.look.st_mode):
                users.setdefault(descriptor.link, (process, descriptor.number))
    outside = holders(frozenset(users), tree.pids) if users else {}
    ends = [
        f"descriptor {users[link][1]} of {users[link][0].name}, held by {named(pids)} too"
        for link, pids in outside.items()
    ]
    if ends:
        yield Problem(
            "pipe_leaves_tree",
            f"A pipe's other end would stay on this host: {listed(ends)}.",
            "Start it with files or /dev/null in place of that pipe, or migrate the process that started both.",
        )


def unix_sockets(tree: TreeSnapshot, holders: Holders) -> Iterator[Problem]:
    """A Unix connection whose other end stays behind, or whose beginning nobody has accepted yet."""
    mine = socket_inodes(tree)
    waiting = [mine[i] for i in mine if (known := tree.unix.get(i)) and known.listening and known.waiting]
    if waiting:
        # criu/sk-unix.c, 4.2: those with data cannot be dumped, those of a process that stays are lost.
        servers = listed([f"descriptor {number} of {process.name}" for process, number in waiting])
        yield Problem(
            "unaccepted_unix_connections",
            f"Connections to a Unix socket wait to be accepted: {servers}.",
            "Try again when the server has accepted them.",
        )
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
        pids = outside.get(f"socket:[{peer}]", [])
        if pids and not strangers(tree, pids):
            continue
        process, number = mine[inode]
        name = tree.unix[peer].name if peer in tree.unix else ""
        journal = journal or name.startswith(("/run/systemd/journal/", "/dev/log"))
        to = " ".join(part for part in (name, f"of {named(pids)}") if part)
        ends.append(f"descriptor {number} of {process.name} to {to}")
    if not ends:
        return
    yield Problem(
        "unix_socket_leaves_tree",
        f"A Unix socket is connected to a process that would stay on this host: {listed(ends)}.",
        "Let it log to a file in place of the journal (systemd: StandardOutput=append:FILE, StandardError=inherit)."
        if journal
        else "End that connection, or migrate the tree that holds both ends.",
    )


def shared_sockets(tree: TreeSnapshot, holders: Holders) -> Iterator[Problem]:
    """A TCP or UDP socket that a process outside has as well: both copies would work with it."""
    mine = {inode: holder for inode, holder in socket_inodes(tree).items() if inode in tree.internet}
    outside = holders(frozenset(f"socket:[{inode}]" for inode in mine), tree.pids) if mine else {}
    connections: list[str] = []
    listeners: list[str] = []
    for inode, (process, number) in mine.items():
        if pids := outside.get(f"socket:[{inode}]"):
            known = tree.internet[inode]
            kind = connections if known.state in TALKING_STATES and known.protocol == "tcp" else listeners
            kind.append(f"descriptor {number} of {process.name} (port {known.local_port}), held by {named(pids)} too")
    if connections:
        yield Problem(
            "connection_shared",
            f"A connection belongs to a process that would stay on this host as well: {listed(connections)}.",
            "Migrate the tree that holds both, or let that process close it.",
        )
    if listeners:
        yield Problem(
            "listener_shared",
            f"A socket belongs to a process that stays on this host as well: {listed(listeners)}.",
            "That process goes on serving it here. For a systemd socket unit: `systemctl stop NAME.socket` afterwards.",
            Severity.WARNS,
        )
