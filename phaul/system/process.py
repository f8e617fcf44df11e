"""The one place where child processes are started (CRIU's session, `criu.session`, is the other): run, wait, reap.

Called by `network` (nft), `criu` (version probes) and `workloads`. Never goes through a shell, never forks by hand.
`run` looks after its child to the end; `start` gives one that may outlive this process.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from subprocess import DEVNULL, PIPE

import structlog

from phaul.errors import PhaulError
from phaul.system import children, placement

log = structlog.get_logger(__name__)

DEFAULT_TIMEOUT_SECONDS = 30.0


class CommandError(PhaulError):
    """A program that phaul ran failed, was not there, or took too long."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A child that has ended. Output is decoded as UTF-8 with replacement."""

    exit_status: int
    stdout: str
    stderr: str


async def run(
    argv: Sequence[str],
    *,
    stdin: str = "",
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    check: bool = True,
) -> Completed:
    """Run a program to its end and give its output.

    The child is killed and reaped when the time runs out or the caller is cancelled. Raises `CommandError` when it is
    missing, times out, or (with `check`) exits other than 0; the message holds the command as it could be pasted.
    """
    pasted = shlex.join(argv)
    try:
        with children.starting() as started:
            child = await asyncio.create_subprocess_exec(
                *argv, stdin=PIPE if stdin else DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
            )
            started.pid = child.pid
    except OSError as error:
        raise CommandError(f"`{pasted}` could not be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(timeout_seconds):
            out, err = await child.communicate(stdin.encode() if stdin else None)
    except TimeoutError as error:
        raise CommandError(f"`{pasted}` did not end within {timeout_seconds:g} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        children.ended(child.pid)
    assert child.returncode is not None
    done = Completed(child.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
    log.debug("command.ended", command=pasted, exit_status=done.exit_status)
    if check and done.exit_status != 0:
        raise CommandError(
            f"`{pasted}` exited with {done.exit_status}", detail=done.stderr.strip() or done.stdout.strip()
        )
    return done


async def start(argv: Sequence[str], pass_fds: Sequence[int]) -> asyncio.subprocess.Process:
    """Start a program that outlives us: a session and a working directory of its own, no standard streams.

    The caller waits for its end (`wait_started`, `reap_started`). Raises `CommandError` when it is missing.
    """
    try:
        with children.starting() as started:
            child = await asyncio.create_subprocess_exec(
                *placement.command(argv),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
                cwd="/",
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
            started.pid = child.pid
    except OSError as error:
        raise CommandError(f"`{shlex.join(argv)}` could not be started: {error.strerror}") from error
    return child


async def reap_started(child: asyncio.subprocess.Process) -> None:
    """Wait until a child of `start` has ended, however long that takes."""
    await child.wait()
    children.ended(child.pid)


async def wait_started(child: asyncio.subprocess.Process, timeout_seconds: float) -> None:
    """Wait until a child of `start` has ended; one that has not in time is killed."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
    children.ended(child.pid)
