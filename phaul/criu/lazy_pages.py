"""The agent's side of the loader (`criu.loader`): taken before the freeze, used by a lazy restore, looked at later.

Used by `criu.engine`. What became of a loader is read from the file that it keeps locked, so that an agent which starts
later knows as much as the one that started it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from pathlib import Path

from phaul.criu import loader
from phaul.criu.loader import State
from phaul.errors import RestoreError
from phaul.migration.lazy import Loading, LoadingState
from phaul.system import process
from phaul.system.attendants import Attendant

READY_SECONDS = 10.0  # for a Python to start on a busy host; it does so while the memory is on its way
END_SECONDS = 5.0  # for one that nobody needs


class PageLoader:
    """Implements `phaul.migration.interfaces.Loader`. Owns the socket; the process, once used, looks after itself."""

    def __init__(self, attendant: Attendant) -> None:
        self._socket = attendant.socket
        self._ended = asyncio.create_task(process.reap_started(attendant.child))
        self._is_ready = False
        self._work: Path | None = None

    async def begin(self, work: Path, images: Path) -> None:
        """Have it wait for CRIU. `work` is where CRIU's restore works; `images` are read once it does."""
        self._work = work
        await asyncio.to_thread(work.mkdir, 0o700, parents=True, exist_ok=True)
        try:
            self._socket.send(loader.encode_order(work, images))
        except OSError:
            pass  # it has ended: `ready` says so

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
        if self._work is not None and self._ended.done():
            (self._work / loader.SOCKET).unlink(missing_ok=True)  # of one that was killed as it waited for CRIU


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
