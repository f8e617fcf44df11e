"""Runs the children of the lab: the one place in `phaul.lab` that starts a process.

Called by the other modules of `phaul.lab`. Never used by the agent, whose children are asynchronous and are started in
`phaul.system.process`.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TypeAlias

from phaul.errors import LabError

DEFAULT_TIMEOUT_SECONDS = 60.0  # every short command of the lab ends in far less; a hang must become a message
SHOWN_OUTPUT_LINES = 20  # of a failed command: the reason stands at the end
_SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Stream: TypeAlias = int | IO[bytes] | IO[str] | None


def find(program: str) -> str:
    """The absolute path of a program of this machine; also of one in sbin when PATH lacks it."""
    path = shutil.which(program) or shutil.which(program, path=_SYSTEM_DIRECTORIES)
    if path is None:
        raise LabError(f"The program {program} is not installed on this machine.", hint="`make setup` installs it.")
    return path


def run(
    argv: Sequence[str],
    *,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and keep what it prints; a failure is a `LabError` with the end of its output."""
    try:
        done = subprocess.run(
            argv,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            check=False,
            timeout=timeout_seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{shlex.join(argv)}` did not end within {timeout_seconds:g} s.") from error
    if check and done.returncode != 0:
        raise failure(argv, done.returncode, done.stderr or done.stdout)
    return done


def run_logged(argv: Sequence[str], log: Path, *, env: Mapping[str, str], timeout_seconds: float) -> int:
    """Run a long command with all its output appended to a file, and return its exit status."""
    with log.open("ab") as stream:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=env, check=False, timeout=timeout_seconds
        ).returncode


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = subprocess.PIPE,
    stderr: Stream = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """Start a command that the caller waits for; it inherits no descriptor but the three named ones."""
    return subprocess.Popen(
        argv, env=env, stdin=stdin, stdout=stdout, stderr=stderr, text=True, errors="replace", close_fds=True
    )


def start_detached(argv: Sequence[str], log: Path, *, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that outlives us, in a session of its own; it says "ready" on its standard output."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            close_fds=True,
            start_new_session=True,
        )


def wait_ready(process: subprocess.Popen[bytes], log: Path, what: str, deadline: float) -> None:
    """Wait for the "ready" of a process of `start_detached`; `deadline` is in the time of `time.monotonic`."""
    assert process.stdout is not None
    with process.stdout as stream:
        readable, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        answer = os.read(stream.fileno(), 64) if readable else b""
    if answer.strip() != b"ready":
        reason = "ended while it was starting" if readable else "was not ready in time"
        raise LabError(f"{what} {reason}.", detail=tail(log))


def failure(argv: Sequence[str], status: int, output: str) -> LabError:
    """The error that tells of a failed command."""
    shown = last_lines(output)
    return LabError(f"`{shlex.join(argv)}` ended with status {status}.", detail=shown)


def tail(log: Path) -> str:
    """The end of a log, "" when there is none."""
    try:
        return last_lines(log.read_text(errors="replace"))
    except OSError:
        return ""


def last_lines(text: str) -> str:
    """The end of what a program said, as much as belongs into a message."""
    return "\n".join(text.strip().splitlines()[-SHOWN_OUTPUT_LINES:])
