"""A frozen tree, each process of it held by a pidfd: killed, stopped or continued as a whole, never another's process.

Made by `workloads.keeping`; the coordinator has it as a `migration.interfaces.TreeHandle`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Collection, Sequence

from phaul.errors import DumpError
from phaul.migration.facts import WorkloadFacts
from phaul.migration.interfaces import TreeIdentity
from phaul.system import procfs
from phaul.system.pidfd import HeldProcess
from phaul.system.standing_still import end_repair, is_stopped, is_traced, silence, stands_still
from phaul.workloads import identity


class ProcessTree:
    """Implements `phaul.migration.interfaces.TreeHandle`.

    Invariant: holds a pidfd of every process that the tree had when it was taken hold of. The tree must be stopped
    then and until `kill`: a process that is born later is not held. Owns the pidfds until `close`.
    """

    def __init__(self, held: Sequence[HeldProcess]) -> None:
        self._held = tuple(held)
        self._stopped: tuple[HeldProcess, ...] = ()

    @classmethod
    def of(cls, facts: WorkloadFacts) -> ProcessTree:
        """Walk the tree again (it may have forked since preflight) and hold every process of it. Blocks."""
        expected = facts.tasks[0].start_ticks
        held: list[HeldProcess] = []
        try:
            root = HeldProcess.open(facts.root_pid)
            held.append(root)
            if root.start_ticks != expected:
                raise DumpError(
                    f"Process {facts.root_pid} is not the one that preflight saw: it ended, and its number was reused.",
                    hint="Look for the workload's new PID and migrate that.",
                )
            held.extend(HeldProcess.open(pid) for pid in procfs.walk_tree(facts.root_pid)[1:])
        except BaseException as error:
            for process in held:
                process.close()
            if isinstance(error, OSError):
                raise DumpError(
                    f"Process {facts.root_pid} or one of its children ended while the tree was frozen.",
                    hint="Something else killed it: look into the kernel's log (out of memory?), then migrate again.",
                ) from error
            raise
        return cls(held)

    @property
    def pids(self) -> tuple[int, ...]:
        """Every process held, the root task first."""
        return tuple(process.pid for process in self._held)

    @property
    def identity(self) -> TreeIdentity:
        """The processes held, as a journal names them."""
        return TreeIdentity(identity.boot_id(), tuple((process.pid, process.start_ticks) for process in self._held))

    @property
    def pidfds(self) -> tuple[tuple[int, int], ...]:
        """The same processes, each with its pidfd, which stays ours."""
        return tuple((process.pid, process.fileno()) for process in self._held)

    def silence(self) -> None:
        """See `TreeHandle.silence`. CRIU does so to what it holds: this is for what it has lost, cured by the keeper.

        Such a connection would say FIN to the fence, and its kernel would keep it as an orphan, with which the workload
        could not come back to this host (EADDRNOTAVAIL).
        """
        for process in self._held:
            if not process.is_dead() and not is_traced(process.pid):
                silence(process.fileno(), process.pid)

    def kill(self) -> None:
        """Deliver SIGKILL to every process, the root first: a root that is alive then proves that none was killed."""
        for process in self._held:
            process.send(signal.SIGKILL)

    def stop(self, except_pids: Collection[int]) -> None:
        """Put a SIGSTOP on every process; it stays pending for as long as CRIU traces them. See `keeping`."""
        self._stopped = tuple(process for process in self._held if process.pid not in except_pids)
        for process in self._stopped:
            process.send(signal.SIGSTOP)

    def is_traced(self) -> bool:
        """Whether CRIU has every process of it in its hands, so that none can have run."""
        return all(is_traced(process.pid) for process in self._held if not process.is_dead())

    def stands_still(self) -> bool:
        """Whether no process of it can run: in CRIU's hands, stopped by `stop`, or dead."""
        return all(stands_still(process.pid) for process in self._held if not process.is_dead())

    def release(self) -> None:
        """Take the SIGSTOPs back while CRIU has the tasks; those that it has lost stay stopped until `run_again`."""
        for process in self._stopped:
            if is_traced(process.pid):
                process.send(signal.SIGCONT)

    def run_again(self) -> int:
        """After CRIU has ended: cure the connections and give how many were, continue what `stop` stopped. Blocks."""
        living = [process for process in self._held if not process.is_dead()]
        cured = sum(end_repair(process.fileno(), process.pid) for process in living)
        for process in self._stopped:
            if not process.is_dead() and is_stopped(process.pid):
                process.send(signal.SIGCONT)
        return cured

    async def wait_dead(self, timeout_seconds: float) -> bool:
        """Wait until the kernel has ended every process; False when the time ran out."""
        try:
            async with asyncio.timeout(timeout_seconds):
                for process in self._held:
                    await process.wait_dead()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Give the pidfds back; a second time does nothing."""
        for process in self._held:
            process.close()
