"""How the lab's images are built: a lock, a log, and commands in a file system that is being made.

Called by `phaul.lab.image` and `phaul.lab.vm_image`. Mounts only in mount namespaces that end with their command.
"""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from phaul.errors import LabError
from phaul.lab import commands, registries

BUILD_DEADLINE_SECONDS = 1800.0  # half a minute is usual; a slow mirror may take many times that

Progress = Callable[[str], None]


@contextmanager
def locked(cache: Path, progress: Progress) -> Iterator[None]:
    """Let one builder work at a time."""
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Waiting for another build of the image")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def in_new_mounts(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` where it may mount without anyone else seeing it."""
    return [commands.find("unshare"), "--mount", "--propagation", "private", "--", *argv]


def run_logged(argv: Sequence[str], log: Path, environment: Mapping[str, str], failed: str) -> None:
    """Run a long command; when it fails, the `LabError` says `failed` and has the end of the log."""
    try:
        status = commands.run_logged(argv, log, env=environment, timeout_seconds=BUILD_DEADLINE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{failed} within {BUILD_DEADLINE_SECONDS:g} s.", detail=commands.tail(log)) from error
    if status != 0:
        raise LabError(f"{failed}.", hint=f"The whole log is {log}.", detail=commands.tail(log))


def debian_options() -> list[str]:
    """Options for every mmdebstrap and apt of the lab: what is wanted, and how this machine reaches its mirror."""
    return [
        'Acquire::Languages "none";',
        'Acquire::Check-Valid-Until "false";',
        'APT::Install-Recommends "false";',
        *registries.apt_options(),
    ]


def debian_source(suite: str, *, options: str = "") -> str:
    """A line of apt's sources for a suite on this machine's mirror."""
    signed = f"signed-by={registries.KEYRING}" if registries.KEYRING.is_file() else ""
    words = " ".join(filter(None, (signed, options)))
    return f"deb {f'[{words}] ' if words else ''}{registries.debian_mirror()} {suite} main"
