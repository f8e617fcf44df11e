"""Where the agent's long-lived children are: each in a control group of its own, outside the agent's.

A service manager counts a process to the unit in whose control group (cgroup v2) it is, and kills it with that unit.
CRIU, the keeper, the loader, and above all a restored workload must not be killed with the agent, nor count as its
memory: see docs/design/0008-systemd.md. CRIU puts a restored tree into a group with the path that it had on the source,
or leaves it in its own.

`agent.server` names the directory in which the groups are made; without one, children are where the agent is.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

# A group must be joined before the program's first instruction, and the only one who can do that without a moment of
# which nobody knows is the child itself: $0 is where the groups are, $$ stays the PID over the exec.
_JOIN = 'mkdir "$0/$$" && echo 0 >"$0/$$/cgroup.procs"; exec "$@"'


class _Place:
    """The directory of the groups, None where there is none."""

    directory: Path | None = None


def use(directory: Path | None) -> None:
    """Have groups made in this directory from now on. It has to be delegated to us (systemd: Delegate=yes)."""
    _Place.directory = None
    if directory is None:
        return
    if not (directory / "cgroup.procs").exists():
        log.warning("children.not_placed", group=str(directory), reason="it is no control group of this host")
        return
    _Place.directory = directory
    sweep()


def command(argv: Sequence[str]) -> list[str]:
    """The command line that joins a new group named after its PID and becomes `argv`.

    A program that is missing is left for the caller to find so.
    """
    if _Place.directory is None or shutil.which(argv[0]) is None:
        return list(argv)
    sweep()
    return ["/bin/sh", "-c", _JOIN, str(_Place.directory), *argv]


def sweep() -> None:
    """Remove the groups in which nobody is left: the kernel refuses for the others."""
    if _Place.directory is None:
        return
    try:
        groups = [entry for entry in _Place.directory.iterdir() if entry.name.isdigit()]
    except OSError:
        return
    for group in groups:
        if Path("/proc", group.name).exists():
            continue  # whoever made it, and may not have joined it yet
        try:
            group.rmdir()
        except OSError:
            continue
