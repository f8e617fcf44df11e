"""A look at a socket that a process holds, through a duplicate of its descriptor: pidfd_getfd(2), Linux >= 5.6.

Called by `workloads.obstacles`. Asks for options only: it reads no data and sets nothing. While it looks, the socket
has one more holder, so that closing it takes effect some microseconds later.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager

_PIDFD_GETFD = 438  # on every architecture (include/uapi/asm-generic/unistd.h)
_SO_GET_FILTER = 26
_SO_PASSCRED = 16
_MCAST_MSFILTER = 48
_SIOCINQ = termios.FIONREAD
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@contextmanager
def sockets_of(pid: int) -> Iterator[Sockets]:
    """Open a process to look at its sockets. Raises `OSError` when it is gone."""
    pidfd = os.pidfd_open(pid)
    try:
        yield Sockets(pidfd)
    finally:
        os.close(pidfd)


class Sockets:
    """The sockets of one process, by the number of the descriptor. Every question answers no where it cannot ask."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd

    @contextmanager
    def _duplicate(self, number: int) -> Iterator[int]:
        found = int(_libc.syscall(*map(ctypes.c_long, (_PIDFD_GETFD, self._pidfd, number, 0))))
        try:
            yield found
        finally:
            if found >= 0:
                os.close(found)

    def has_bpf_filter(self, number: int) -> bool:
        """Whether a program of eBPF filters what it receives: the kernel does not show such a filter (EACCES)."""
        with self._duplicate(number) as found:
            length = ctypes.c_int(0)
            ctypes.set_errno(0)
            done = _libc.getsockopt(found, socket.SOL_SOCKET, _SO_GET_FILTER, None, ctypes.byref(length))
            return done != 0 and ctypes.get_errno() == 13

    def holds_credentials(self, number: int) -> bool:
        """Whether a Unix socket has unread messages with the credentials of who sent them."""
        with self._duplicate(number) as found:
            value = ctypes.c_int(0)
            length = ctypes.c_int(4)
            asked = _libc.getsockopt(found, socket.SOL_SOCKET, _SO_PASSCRED, ctypes.byref(value), ctypes.byref(length))
            if asked != 0 or not value.value:
                return False
            try:
                unread = fcntl.ioctl(found, _SIOCINQ, b"\0" * 4)
            except OSError:  # one that listens
                return False
            return bool(int.from_bytes(unread, "little"))

    def device(self, number: int) -> str:
        """The network device that a socket is bound to, "" for none."""
        with self._duplicate(number) as found:
            name = ctypes.create_string_buffer(16)
            length = ctypes.c_int(len(name))
            option = socket.SO_BINDTODEVICE
            done = _libc.getsockopt(found, socket.SOL_SOCKET, option, name, ctypes.byref(length))
            return name.value.decode(errors="replace") if done == 0 and length.value else ""

    def in_group(self, number: int, group: str, device: str) -> bool:
        """Whether a socket has joined a multicast group of IPv4 on a network device."""
        try:
            index = socket.if_nametoindex(device)
        except OSError:
            return False
        # struct group_filter of linux/in.h: device, group as a sockaddr_storage, mode, count, room for one source
        asked = struct.pack("I4xHH4s120xII128x", index, socket.AF_INET, 0, socket.inet_aton(group), 0, 0)
        with self._duplicate(number) as found:
            content = ctypes.create_string_buffer(asked, len(asked))
            length = ctypes.c_int(len(asked))
            # Of a group that it has not joined the kernel says EADDRNOTAVAIL (ip_mc_gsfget in net/ipv4/igmp.c).
            return int(_libc.getsockopt(found, 0, _MCAST_MSFILTER, content, ctypes.byref(length))) == 0
