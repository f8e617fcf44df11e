"""The one place where child processes are started (CRIU's session, `criu.session`, is the other): run, wait, reap.

Called by `network` (nft), `criu` (version probes) and `workloads`. Never goes through a shell, never forks by hand.
`run` looks after its child to the end; `start` gives one that may outlive this process.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from subprocess import DEVNULL, PIPE

import structlog

from phaul.errors import PhaulError
from phaul.system import children, placement

log = structlog.get_logger(__name__)

DEFAULT_TIMEOUT_SECONDS = 30.0
TERM_GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL, for a script to tidy up
LAST_OUTPUT_SECONDS = 0.2  # for what a script wrote last, where a process that it left behind holds its output open
KEPT_OUTPUT_BYTES = 8192
DEATH_SIGNAL = "setpriv"  # of util-linux; becomes the script, with PR_SET_PDEATHSIG set


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


@dataclass(frozen=True, slots=True)
class Watched:
    """A script that has ended. `exit_status` is minus the signal's number for one that was killed by a signal.

    `output` is the end of what it wrote to standard output and error: at most `KEPT_OUTPUT_BYTES`.
    """

    exit_status: int
    output: str
    timed_out: bool


async def run_watched(argv: Sequence[str], environment: Mapping[str, str], timeout_seconds: float) -> Watched:
    """Run somebody's script in a session of its own, with this environment and nothing else of ours.

    What is over its time gets SIGTERM, and SIGKILL 2 s later, with its whole process group; when the caller is
    cancelled, at once. What a script that ended in time has left running in the background is let be. Should we be
    killed, the kernel ends the script, so that none goes on beside what is done about our death. Raises `CommandError`
    where it cannot be started.
    """
    dies_with_us = [DEATH_SIGNAL, "--pdeathsig", "TERM", "--"] if shutil.which(DEATH_SIGNAL) else []
    # A pipe of our own: for one of asyncio's, a process's end would wait until whoever holds the pipe has ended too.
    ours, theirs = os.pipe()
    try:
        with children.starting() as started:
            child = await asyncio.create_subprocess_exec(
                *dies_with_us,
                *argv,
                stdin=DEVNULL,
                stdout=theirs,
                stderr=theirs,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
            started.pid = child.pid
    except OSError as error:
        os.close(ours)
        raise CommandError(f"`{shlex.join(argv)}` could not be started: {error.strerror}") from error
    finally:
        os.close(theirs)
    kept = bytearray()
    reading = asyncio.create_task(_keep_end(ours, kept))
    timed_out = False
    try:
        try:
            async with asyncio.timeout(timeout_seconds):
                await child.wait()
        except TimeoutError:
            timed_out = True
            await _end_group(child)
        await asyncio.wait([reading], timeout=LAST_OUTPUT_SECONDS)
    finally:
        if child.returncode is None:
            _signal_group(child.pid, signal.SIGKILL)
            await child.wait()
        reading.cancel()
        children.ended(child.pid)
    assert child.returncode is not None
    return Watched(child.returncode, kept.decode(errors="replace"), timed_out)


async def _keep_end(fd: int, kept: bytearray) -> None:
    """Read a pipe to its end, and close it; keep the last of it."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    try:
        while piece := await reader.read(KEPT_OUTPUT_BYTES):
            kept += piece
            del kept[:-KEPT_OUTPUT_BYTES]
    finally:
        transport.close()


async def _end_group(child: asyncio.subprocess.Process) -> None:
    _signal_group(child.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(TERM_GRACE_SECONDS):
            await child.wait()
    except TimeoutError:
        pass
    _signal_group(child.pid, signal.SIGKILL)  # also what it started and did not end itself
    await child.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass  # all have ended


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
