"""Sockets that a service manager has opened and holds for us (sd_listen_fds(3)), so that they outlive a restart.

Called by `agent.local_front`. Whoever connects while the agent starts waits instead of being refused. Does nothing
where no socket was handed over.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
PID_VARIABLE = "LISTEN_PID"
COUNT_VARIABLE = "LISTEN_FDS"
NAMES_VARIABLE = "LISTEN_FDNAMES"


def handed_over(path: Path) -> socket.socket | None:
    """The listening Unix socket that was opened for `path`; None where there is none. The caller owns it.

    Can be asked once for a socket. No child inherits it.
    """
    if os.environ.get(PID_VARIABLE) != str(os.getpid()):
        return None
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(os.environ.get(COUNT_VARIABLE) or 0)):
        try:
            found = socket.socket(fileno=descriptor)
        except OSError:
            continue  # closed, or no socket
        if found.family == socket.AF_UNIX and found.getsockname() == str(path):
            found.set_inheritable(False)
            return found
        found.detach()
    return None
