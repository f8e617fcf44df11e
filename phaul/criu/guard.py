"""The agent's side of the process that guards a restored copy (`system.unreleased`, in a `system.keeper`).

Taken before the freeze, one a migration, because a Python takes its time to start. It is a process of its own because
ptrace(2) needs a thread that waits for CRIU alone, and because it outlives the agent. Used by `criu.gates`.
"""

from __future__ import annotations

import asyncio

import structlog

from phaul.system import keeper, process
from phaul.system.attendants import Attendant

log = structlog.get_logger(__name__)

ANSWER_SECONDS = 10.0
END_SECONDS = 5.0  # for it to end after the farewell


class CopyGuard:
    """Implements `phaul.migration.guard.Guard`. Owns its attendant, a `system.keeper`, until `close`."""

    def __init__(self, attendant: Attendant) -> None:
        self._child, self._socket = attendant.child, attendant.socket
        self._is_ready = False

    async def watch(self, criu_pid: int, root_pid: int, since_ticks: int) -> bool:
        """Guard a copy from now on. False, with a warning in the log, where that is not possible."""
        watches = (
            (self._is_ready or await self._hear() == keeper.READY)
            and await self._ask(keeper.GUARD + keeper.WATCHED.pack(criu_pid, root_pid, since_ticks)) == keeper.WATCHING
        )  # fmt: skip
        self._is_ready = True
        if not watches:
            log.warning("guard.does_not_watch", criu_pid=criu_pid, root_pid=root_pid)
        return watches

    async def release(self) -> bool:
        """Let the copy run, whatever becomes of CRIU. False where it was killed, as CRIU has ended before."""
        return await self._ask(keeper.RELEASE) != keeper.KILLED

    async def close(self) -> None:
        """End the process, which waits for a CRIU that it still watches."""
        try:
            self._socket.send(keeper.FAREWELL)
        except OSError:
            pass  # it has ended already
        self._socket.close()
        await process.wait_started(self._child, END_SECONDS)

    async def _ask(self, word: bytes) -> bytes:
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, word)
        except OSError:
            return b""
        return await self._hear()

    async def _hear(self) -> bytes:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.get_running_loop().sock_recv(self._socket, keeper.LONGEST_WORD)
        except (TimeoutError, OSError):
            return b""
