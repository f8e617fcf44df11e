"""Who is at the other end of a Unix socket, as the kernel noted it at `connect`. Called by `agent.local_front`."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass

_UCRED = struct.Struct("iII")
SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h, since Linux 4.13; Python 3.13 has no name for it
GROUPS_BYTES = 1024  # what Python's getsockopt takes: 256 groups


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of the process that connected. Its groups are all of them, the effective one first."""

    pid: int
    user_id: int
    group_ids: tuple[int, ...]

    @property
    def may_all(self) -> bool:
        """Root, or the user that this process runs as."""
        return self.user_id in (0, os.geteuid())


def of_peer(connection: socket.socket) -> Credentials:
    """Ask the kernel (unix(7): SO_PEERCRED). Raises OSError."""
    pid, user_id, group_id = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        others = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        others = b""  # of somebody with more groups than that only the first counts: less is allowed, not more
    group_ids = dict.fromkeys((group_id, *struct.unpack(f"{len(others) // 4}I", others)))
    return Credentials(pid, user_id, tuple(group_ids))


def user_name(user_id: int) -> str:
    """What the user database calls a user; "" where it does not."""
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return ""


def group_name(group_id: int) -> str:
    """Likewise a group."""
    try:
        return grp.getgrgid(group_id).gr_name
    except KeyError:
        return ""


def caller_name() -> str:
    """Who runs this program, as the audit log writes it; with the name that they had before `sudo`."""
    user_id = os.getuid()
    before = os.environ.get("SUDO_USER", "") if user_id == 0 else ""
    return f"{user_name(user_id) or 'user'} ({user_id})" + (f", by sudo of {before}" if before else "")
