"""Do something inside the network or IPC namespace of another process, without a child process.

Called by `workloads` and `network`. A thread of its own goes there and ends there, so that no other thread of the agent
is ever in another namespace than the agent.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ANY_KIND = 0  # what the descriptor leads to says which (setns(2)); not all kinds can be entered by a thread
CLONE_NEWNET = 0x40000000  # linux/sched.h
NAMED = Path("/run/netns")  # where `ip netns` keeps namespaces that it has given a name (ip-netns(8))

_libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12


def inside(namespace: str | Path, act: Callable[[], T]) -> T:
    """Call `act` in a namespace, given by a path like ``/proc/PID/ns/net`` or ``.../ipc``; give what it gives. Blocks.

    Sockets that `act` opens stay in that namespace, what it attaches (shmat(2)) stays attached; ``/proc/sys/net`` and
    ``/proc/sysvipc`` are those of it. Raises what `act` raises, and `OSError` where the namespace cannot be entered.
    """

    def enter() -> T:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _succeed(_libc.setns(descriptor, ANY_KIND), str(namespace))
        finally:
            os.close(descriptor)
        return act()

    return _in_thread(enter)


def new_network() -> int:
    """Make a network namespace that nobody is in; give a descriptor that keeps it. Raises `OSError`. Blocks."""

    def leave() -> int:
        _succeed(_libc.unshare(CLONE_NEWNET), "unshare")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_thread(leave)


def _succeed(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _in_thread(act: Callable[[], T]) -> T:
    """Call `act` in a thread that ends with it; give what it gives, raise what it raises. Blocks."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(act())
        except BaseException as error:  # noqa: BLE001 # handed on to the caller
            failures.append(error)

    thread = threading.Thread(target=run, name="in another namespace", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def path_of(descriptor: int) -> str:
    """Give the path by which a child process finds what a descriptor of this process leads to."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def all_networks() -> tuple[Path, ...]:
    """Give a path to each network namespace that a process lives in or that has a name, but for our own."""
    found: dict[int, Path] = {}
    for path in (*Path("/proc").glob("[0-9]*/ns/net"), *(NAMED / name for name in network_names())):
        try:
            if is_elsewhere(path):
                found.setdefault(path.stat().st_ino, path)
        except OSError:  # it has ended meanwhile
            continue
    return tuple(found.values())


def network_of(pid: int) -> Path:
    """Give the path of the network namespace of a process."""
    return Path(f"/proc/{pid}/ns/net")


def ipc_of(pid: int) -> Path:
    """Give the path of the IPC namespace of a process."""
    return Path(f"/proc/{pid}/ns/ipc")


def is_elsewhere(namespace: Path) -> bool:
    """Whether a path leads to a network namespace, and to another than this thread's."""
    try:
        return namespace.stat().st_ino != Path("/proc/thread-self/ns/net").stat().st_ino
    except OSError:
        return False


def network_names() -> dict[str, int]:
    """Give the named network namespaces of this host with their inodes; a name that leads nowhere has 0."""
    try:
        entries = list(NAMED.iterdir())
    except FileNotFoundError:
        return {}
    found: dict[str, int] = {}
    for entry in entries:
        try:
            found[entry.name] = entry.stat().st_ino if entry.is_mount() else 0
        except OSError:
            found[entry.name] = 0
    return found
