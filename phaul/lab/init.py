"""PID 1 of a lab host: reaps whatever is left to it, and does nothing else.

Run by `boot.sh` as a plain script with the image's own Python, without phaul's dependencies. Never ends by itself: the
lab kills it, and with it the kernel kills every process of the host.
"""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Reap for ever."""
    # Blocked, so that a child that ends between the last waitpid and sigwait is not missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        reap_all()
        signal.sigwait({signal.SIGCHLD})


def reap_all() -> None:
    """Take the exit status of every child that has ended."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


if __name__ == "__main__":
    main()
