"""Processes held by pidfd: signals and deaths of exactly one process, whatever becomes of its number.

Called by `workloads`. Never signals by PID.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal

from phaul.system import procfs


class HeldProcess:
    """One process, held by a pidfd.

    Invariant: from `open` to `close` every signal goes to the process that had `pid` and `start_ticks` when it was
    opened, and to no other, even when the number is given out again. Owns the descriptor.
    """

    def __init__(self, pid: int, start_ticks: int, descriptor: int) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self._descriptor = descriptor

    @classmethod
    def open(cls, pid: int) -> HeldProcess:
        """Take hold of a process, also of one not reaped yet; `ProcessLookupError` when there is none."""
        descriptor = os.pidfd_open(pid)
        try:
            # Read after opening: while the pidfd can still be signalled, the number is that of the process we hold.
            start_ticks = procfs.read_stat(pid).start_ticks
            signal.pidfd_send_signal(descriptor, 0)
        except FileNotFoundError as error:
            os.close(descriptor)
            raise ProcessLookupError(f"process {pid} has ended") from error
        except BaseException:
            os.close(descriptor)
            raise
        return cls(pid, start_ticks, descriptor)

    def send(self, number: signal.Signals) -> None:
        """Deliver a signal; a process that was reaped meanwhile is no error."""
        try:
            signal.pidfd_send_signal(self._descriptor, number)
        except ProcessLookupError:
            pass  # it cannot run any more: what every signal we send is after

    def is_dead(self) -> bool:
        """Say whether the kernel has ended every thread of it (it may still wait to be reaped)."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)  # pidfd_open(2): readable once the process has terminated
        return bool(poll.poll(0))

    async def wait_dead(self) -> None:
        """Wait until `is_dead`."""
        if self.is_dead():
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._descriptor)

    def fileno(self) -> int:
        """The pidfd; it stays ours."""
        return self._descriptor

    def close(self) -> None:
        """Give the descriptor back; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
