"""Process trees to be looked at and held: made for a test, killed whole at its end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from phaul.system import procfs
from phaul.system.pidfd import HeldProcess
from phaul.workloads.held_tree import ProcessTree

READY_SECONDS = 20
PRELUDE = "import mmap, os, signal, socket, sys, threading, time\n"
EPILOGUE = "\nopen(sys.argv[1], 'w').close()\nwhile True: time.sleep(60)\n"

Start = Callable[..., subprocess.Popen[bytes]]


@contextmanager
def starting(directory: Path) -> Iterator[Start]:
    """Start Python code in a session of its own, with nothing inherited, and wait until it is ready to be looked at."""
    running: list[subprocess.Popen[bytes]] = []

    def run(code: str, session: bool = True, **options: object) -> subprocess.Popen[bytes]:
        ready = directory / f"ready{len(running)}"
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        child: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code) + EPILOGUE, str(ready)],
            start_new_session=session,
            cwd=directory,
            **(streams | options),
        )
        running.append(child)
        deadline = time.monotonic() + READY_SECONDS
        while not ready.exists():
            assert child.poll() is None and time.monotonic() < deadline, "the child did not come up"
            time.sleep(0.01)
        return child

    yield run
    for child in running:
        if child.poll() is None:
            with ProcessTreeOf(child.pid) as tree:
                tree.kill()
        child.wait()


class ProcessTreeOf:
    """Holds a whole tree for the clean-up of a test."""

    def __init__(self, pid: int) -> None:
        self._tree = ProcessTree([HeldProcess.open(each) for each in procfs.walk_tree(pid)])

    def __enter__(self) -> ProcessTree:
        return self._tree

    def __exit__(self, *_: object) -> None:
        self._tree.close()
