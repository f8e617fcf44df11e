"""Processes of ours that attend a migration, and outlive the agent: the keeper, the guard and the loader.

Each is a Python that takes a tenth of a second of CPU to start, and a second where that is emulated. So one of each
stands ready while nothing is under way: it has said that it is ready, and waits for its first word. Used by
`workloads.keeping`, `criu.guard` and `criu.lazy_pages`, which know what to say; `agent.server` has them filled up.

All are started as `python -I -B -m MODULE FD`, FD a Unix socket to us, and end when it is closed with nothing said.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from phaul.errors import PhaulError
from phaul.system import process

log = structlog.get_logger(__name__)

END_SECONDS = 5.0  # for one that nobody needs


@dataclass(frozen=True, slots=True)
class Attendant:
    """One that was started. Who has it owns both; `socket` is ours, SOCK_SEQPACKET, and does not block."""

    child: asyncio.subprocess.Process
    socket: socket.socket

    async def close(self) -> None:
        """End one that nobody has said a word to."""
        self.socket.close()
        await process.wait_started(self.child, END_SECONDS)


class Attendants:
    """Gives attendants: the one that stands ready, or else a new one. Without `fill` it is always a new one."""

    def __init__(self) -> None:
        self._ready: dict[str, Attendant] = {}

    async def take(self, module: str) -> Attendant:
        """Give one of a module. It need not be ready yet. Raises `CommandError` where none can be started."""
        attendant = self._ready.pop(module, None)
        if attendant is not None and attendant.child.returncode is None:
            return attendant
        if attendant is not None:
            await attendant.close()
        return await _start(module)

    async def fill(self, modules: Sequence[str]) -> None:
        """Have one of each stand ready. What cannot be started is told in the log, and then when it is needed."""
        for module in modules:
            attendant = self._ready.get(module)
            if attendant is not None and attendant.child.returncode is None:
                continue
            self._ready.pop(module, None)
            if attendant is not None:
                await attendant.close()
            try:
                started = await _start(module)
            except PhaulError as error:
                log.warning("attendant.not_ready", module=module, reason=error.message)
                continue
            self._ready[module] = started

    async def close(self) -> None:
        """End those that stand ready."""
        while self._ready:
            _, attendant = self._ready.popitem()
            await attendant.close()


async def _start(module: str) -> Attendant:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        child = await process.start([sys.executable, "-I", "-B", "-m", module, str(theirs.fileno())], [theirs.fileno()])
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return Attendant(child, ours)
