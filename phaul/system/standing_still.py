"""Tasks that a dead CRIU has left standing still: seen, cured and continued.

Called by `system.keeper` (which outlives the agent), and in the agent by `workloads.keeping`, `workloads.identity` and
`criu.gates`. Standard library only, so that the keeper is small. Never signals by PID, and never ends anything.

Where CRIU dies between locking the connections and its end, their sockets stay in repair mode (tcp(7) does not name it;
Linux, net/ipv4/tcp.c: TCP_REPAIR): every recv and send of the workload fails with EPERM. A descriptor of such a socket
is as good as the workload's own, and pidfd_getfd(2) gives one. The same mode serves a copy: a socket that ends in it
says nothing to its client, and one that leaves it tells the client where it is now.
"""

from __future__ import annotations

import ctypes
import signal
import socket
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")
SYS_PIDFD_GETFD = 438  # the same on every architecture (Linux 5.6)
TCP_REPAIR = 19  # linux/tcp.h
TCP_REPAIR_ON = 1
TCP_REPAIR_OFF = 0  # with a window probe, where the connection is established
TCP_REPAIR_OFF_NO_WINDOW_PROBE = -1  # Linux 4.18; a probe is of use only where the connection was restored
TCP_ESTABLISHED = 1  # net/tcp_states.h
REUSE_FORCED = 2  # net/core/sock.h: what repair mode makes of SO_REUSEADDR, and ending it makes 0 of
STOP_BIT = 1 << (signal.SIGSTOP - 1)
NOTHING_LEFT = "ZX"
HALTED = "Tt"

_libc = ctypes.CDLL(None, use_errno=True)
# Its calls keep the interpreter's lock: no other thread of ours comes in between two of them.
_at_once = ctypes.PyDLL(None)


def is_traced(pid: int) -> bool:
    """Whether a tracer holds any thread of a process; False for one that has ended."""
    return any(int(status.get("TracerPid", "0")) for status in _threads(pid))


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has stopped a process, or will as soon as its tracer lets go."""
    return any(status.get("State", "?")[0] == "T" or _pending(status) & STOP_BIT for status in _threads(pid))


def stands_still(pid: int) -> bool:
    """Whether no thread of a process can run: in a tracer's hands, ended, or stopped, also where it has yet to notice.

    A SIGSTOP that was sent while a tracer had the task is taken before it is back in user space.
    """
    return all(
        status.get("State", "X")[0] in HALTED + NOTHING_LEFT or bool(_pending(status) & STOP_BIT)
        for status in _threads(pid)
    )


def end_repair(pidfd: int, pid: int) -> int:
    """Take every TCP socket of a process out of repair mode; give how many were. `pid` is only where to look.

    Sockets that are no longer there, or are of another kind, are passed over.
    """
    return _each_connection(pidfd, pid, _end_repair_of)


def silence(pidfd: int, pid: int) -> int:
    """Put every TCP connection of a process into repair mode, so that it ends without a word; give how many were put.

    For a copy that is about to be killed: its clients know nothing of it, and the kernel keeps nothing (Linux,
    net/ipv4/tcp.c: __tcp_close disconnects a socket in repair mode, where any other says FIN and lingers).
    """
    return _each_connection(pidfd, pid, _begin_repair_of)


def tell_clients(pidfd: int, pid: int) -> int:
    """Send a window probe over every established connection of a process; give over how many.

    The answer, or the client's next segment, comes to where the connection is now. Nothing is sent for a process that
    does not stand still: in repair mode, for some microseconds, its own calls would fail (EPERM).
    """
    return _each_connection(pidfd, pid, _probe_over) if stands_still(pid) else 0


def _each_connection(pidfd: int, pid: int, treat: Callable[[socket.socket], bool]) -> int:
    treated = 0
    for number in _socket_descriptors(pid):
        descriptor = _libc.syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
        if descriptor < 0:
            continue  # closed since, or the process has ended
        with socket.socket(fileno=descriptor) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                try:
                    treated += treat(found)
                except OSError:
                    continue  # not TCP, or it listens
    return treated


def _begin_repair_of(found: socket.socket) -> bool:
    found.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON)
    return True


def _probe_over(found: socket.socket) -> bool:
    if found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_ESTABLISHED:
        return False
    reuse = found.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    for mode in (TCP_REPAIR_ON, TCP_REPAIR_OFF):
        value = ctypes.c_int(mode)
        if _at_once.setsockopt(found.fileno(), socket.IPPROTO_TCP, TCP_REPAIR, ctypes.byref(value), 4):
            return False  # not a connection that can be in it
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    return True


def _end_repair_of(found: socket.socket) -> bool:
    if not found.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
        return False
    reuse = found.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    try:
        found.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WINDOW_PROBE)
    except OSError:
        found.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF)
    if reuse == REUSE_FORCED:
        # What it was before is lost. Without it a server could not listen at its port again while this connection is
        # there; with it nothing is taken from anybody.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return True


def _socket_descriptors(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for entry in (PROC / str(pid) / "fd").iterdir():
            try:
                if str(entry.readlink()).startswith("socket:"):
                    found.append(int(entry.name))
            except OSError:
                continue  # closed since
    except OSError:
        return found  # the process has ended
    return found


def _pending(status: dict[str, str]) -> int:
    return int(status.get("SigPnd", "0"), 16) | int(status.get("ShdPnd", "0"), 16)


def _threads(pid: int) -> list[dict[str, str]]:
    """Read `status` of every thread there is; proc_pid_status(5)."""
    found: list[dict[str, str]] = []
    try:
        threads = list((PROC / str(pid) / "task").iterdir())
    except OSError:
        return found
    for thread in threads:
        try:
            lines = (thread / "status").read_text(errors="replace").splitlines()
        except OSError:
            continue  # it has ended
        found.append({key: value.strip() for key, _, value in (line.partition(":") for line in lines)})
    return found
