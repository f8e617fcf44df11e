"""The loader of a lazily restored workload, found on a host and slowed down, so that there is a middle of its work."""

from __future__ import annotations

import contextlib
import json
import subprocess
from types import TracebackType
from typing import Any, Self

from phaul.lab.host import Host

from .moves import phaul
from .witness import wait_until

# On the host itself: waits until a loader is at work, which is when it has a twin, and stops it for 100 ms of each 101,
# in which it loads a few MiB. Ends when it is told anything.
SLOW_DOWN = """
import os, select, signal, sys, time
def loaders():
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if b"\\0phaul.criu.loader\\0" in open(f"/proc/{name}/cmdline", "rb").read():
                if os.readlink(f"/proc/{name}/cwd") != "/":  # where one stands that waits for its first word
                    yield int(name)
        except OSError:
            pass
pid = 0
while not select.select([sys.stdin], [], [], 0.001)[0]:
    try:
        if not pid:
            pid, *twin = sorted(loaders()) or [0]
            if not twin:
                pid = 0
        if pid:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.1)
            os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pid = 0
"""


def loaders_on(host: Host) -> list[int]:
    """Give the loaders of a host: the one that works, then its twin, if there is one yet."""
    found: dict[int, int] = {}
    for entry in host.path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (
                    b"\0phaul.criu.loader\0" in (entry / "cmdline").read_bytes()
                    and str((entry / "cwd").readlink()) != "/"
                ):
                    stat = host.stat(int(entry.name))
                    if stat is not None and not stat.is_dead:
                        found[stat.pid] = stat.parent_pid
    return sorted(found, key=lambda pid: found[pid] in found)


class SlowLoader:
    """Slows the loader of a host from its start on, until the context is left or `let_go` is called."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._slowing: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._slowing = self._host.popen(["python3", "-c", SLOW_DOWN], stdin=subprocess.PIPE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_go()

    def let_go(self) -> None:
        """From now on it works as fast as it can."""
        if self._slowing is not None:
            self._slowing.communicate("over")
            self._slowing = None

    def wait_at_work(self) -> tuple[int, int]:
        """Wait until the copy runs and is being loaded; give the loader and its twin."""
        wait_until(lambda: len(loaders_on(self._host)) == 2, "no loader is at work")
        loader, twin = loaders_on(self._host)
        return loader, twin


def status_of(host: Host, migration_id: str) -> dict[str, Any]:
    """What `phaul status` says of a migration."""
    shown: dict[str, Any] = json.loads(phaul(host, "status", migration_id, "--json").stdout)
    return shown


def wait_loaded(host: Host, migration_id: str) -> None:
    """Wait until `phaul status` speaks of nothing more to load, and the images are gone."""
    wait_until(lambda: not status_of(host, migration_id)["loading"], "it is still being loaded")
    images = host.path(f"/run/phaul/images/{migration_id}")
    wait_until(lambda: not images.exists(), "the images are still there")
