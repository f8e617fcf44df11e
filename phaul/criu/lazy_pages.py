"""The agent's side of the loader (`criu.loader`): started before the freeze, used by a lazy restore, looked at later.

Used by `criu.engine`. What became of a loader is read from the file that it keeps locked, so that an agent which starts
later knows as much as the one that started it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import Self

from phaul.criu import loader
from phaul.criu.loader import State
from phaul.errors import RestoreError
from phaul.migration.lazy import Loading, LoadingState
from phaul.system import process

READY_SECONDS = 10.0  # for a Python to start on a busy host; it does so while the memory is on its way
END_SECONDS = 5.0  # for one that nobody needs


class PageLoader:
    """Implements `phaul.migration.interfaces.Loader`. Owns the socket; the process, once used, looks after itself."""

    def __init__(self, child: asyncio.subprocess.Process, to_loader: socket.socket) -> None:
        self._socket = to_loader
        self._ended = asyncio.create_task(process.reap_started(child))
        self._is_ready = False

    @classmethod
    async def start(cls, work: Path, images: Path) -> Self:
        """Start one. `work` is CRIU's working directory at the restore; `images` is read once that begins."""
        await asyncio.to_thread(work.mkdir, 0o700, parents=True, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-I", "-B", "-m", loader.__name__, str(theirs.fileno()), str(work), str(images)]
        try:
            child = await process.start(argv, [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(child, ours)

    async def ready(self) -> None:
        """See `Loader.ready`."""
        if self._is_ready:
            return
        try:
            async with asyncio.timeout(READY_SECONDS):
                word = await asyncio.get_running_loop().sock_recv(self._socket, len(loader.READY))
        except (TimeoutError, OSError):
            word = b""
        if word != loader.READY:
            raise RestoreError(
                "the process that loads pages while the copy runs could not be started",
                hint=f"Try by hand: `{sys.executable} -I -m {loader.__name__}` says why.",
            )
        self._is_ready = True

    async def close(self) -> None:
        """See `Loader.close`."""
        self._socket.close()
        await asyncio.wait([self._ended], timeout=END_SECONDS)


def look(work: Path) -> Loading:
    """Say how far the loader is that was started for a working directory, and used."""
    try:
        fd = os.open(work / loader.STATE_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Loading(LoadingState.LOST)
    try:
        # The order matters: one that ends has written its last word before it lets go of the lock.
        lives = _is_locked(fd)
        state, left, total = loader.decode_state(os.pread(fd, loader.STATE_BYTES, 0))
    except ValueError:
        return Loading(LoadingState.LOST)  # killed as it began
    finally:
        os.close(fd)
    if state is State.DONE:
        return Loading(LoadingState.DONE, 0, total)
    if not lives:
        return Loading(LoadingState.LOST, left, total)
    return Loading(LoadingState.FAILING if state is State.FAILING else LoadingState.LOADING, left, total)


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
