"""A copy in the hands of a CRIU that restores it: whatever ends CRIU before the copy was let run ends the copy as well.

Used by `system.keeper`, for `criu.guard`. A CRIU that is killed lets go of tasks that stand anywhere in its restorer:
some go on as if nothing had happened, some wait for good, some run into code that CRIU was about to take away (seen:
SIGSEGV), and what they had of connections is told to the clients as closed. So they are killed while they are still in
CRIU's hands, and without a word, which is known to have run nothing. Standard library only.
"""

from __future__ import annotations

import os
import signal
import threading

from phaul.system.exit_stop import ExitStop
from phaul.system.procfs import read_stat, walk_tree
from phaul.system.standing_still import is_traced, silence


class UnreleasedCopy:
    """One copy and its CRIU, from the restore's gate until CRIU has ended.

    Args:
        criu_pid: the CRIU whose child the copy's root is.
        root_pid: the copy's root.
        since_ticks: when CRIU began, in clock ticks since boot: an older process is not the copy.
    """

    def __init__(self, criu_pid: int, root_pid: int, since_ticks: int) -> None:
        self._criu_pid = criu_pid
        self._root_pid = root_pid
        self._since_ticks = since_ticks
        self._deciding = threading.Lock()
        self._released = False
        self._killed = False
        self._left_alone = False
        self._watch = ExitStop(criu_pid, self._criu_ends)

    def watch(self) -> bool:
        """Begin. False where CRIU cannot be watched, as somebody else traces it."""
        return self._watch.begin()

    def release(self) -> bool:
        """From here on the copy runs, whatever becomes of CRIU. False where it was killed before that."""
        with self._deciding:
            self._released = not self._killed
            return self._released

    def leave_alone(self) -> None:
        """The agent has died. Its CRIU may get the copy to run all the same, and nobody can say so any more."""
        self._left_alone = True

    def join(self) -> None:
        """Wait for the end of CRIU."""
        self._watch.join()

    def _criu_ends(self) -> None:
        with self._deciding:
            if self._released:
                return
            self._killed = True
            self._kill()

    def _kill(self) -> None:
        try:
            stat = read_stat(self._root_pid)
            pids = walk_tree(self._root_pid)
        except OSError:
            return  # CRIU has ended it
        if stat.parent_pid != self._criu_pid or stat.start_ticks < self._since_ticks:
            return
        if self._left_alone and not any(is_traced(pid) for pid in pids):
            return  # CRIU has let it run, or it waits at the gate: the agent that is started next sees which
        pidfds: list[int] = []
        for pid in pids:
            try:
                pidfds.append(os.pidfd_open(pid))
            except OSError:
                continue  # it has ended
            silence(pidfds[-1], pid)
        for pidfd in pidfds:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended
            os.close(pidfd)
