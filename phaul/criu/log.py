"""What CRIU's log says, in words: its first errors, the likely cause, and where the log is.

Pure; called with the text of a log by `criu.gates`. CRIU's later errors are mostly consequences, so the first ones are
shown. The causes are read off CRIU's source (4.2) and its issue tracker.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SHOWN_ERRORS = 5

# Time and task stand there at log levels above 2 only.
ERROR_LINE = re.compile(r"^(\([\d.]+\))?\s*(\d+:\s*)*Error\s*(\([^)]*\))?:?\s*(?P<text>.*)$")

# Errors that CRIU prints at every rollback, or that keep it from nothing.
NOISE = re.compile(r"Dumping FAILED|Restoring FAILED|Can't setup RLIMIT_NOFILE|Unable to open .*stats-")


@dataclass(frozen=True, slots=True)
class LogExcerpt:
    """A log in brief. `errors` are whole lines of text without CRIU's time stamps, oldest first."""

    errors: tuple[str, ...]
    cause: str  # one clause, "" when none is known
    hint: str
    path: str

    def detail(self) -> str:
        """Give the lines that stand under an error message."""
        return "\n".join([*self.errors, f"log: {self.path}"])


@dataclass(frozen=True, slots=True)
class _Cause:
    pattern: re.Pattern[str]
    cause: str
    hint: str


def _cause(pattern: str, cause: str, hint: str) -> _Cause:
    return _Cause(re.compile(pattern), cause, hint)


CAUSES = (
    _cause(
        r"Unexpected rt vDSO area bounds", "this CRIU is too old for the kernel's vDSO", "Install CRIU 4.2 or newer."
    ),
    _cause(r"Can't get 1:16 opt", "this CRIU cannot dump sockets on this kernel", "Install CRIU 4.2 or newer."),
    _cause(
        r"In-flight connection",
        "connections wait in a listen queue and have not been accepted",
        "Try again when the workload has accepted them, or let them go with --drop-unaccepted.",
    ),
    _cause(
        r"Can't open file /?(?P<what>[^\s:]+)",  # CRIU names paths from the root on
        "the file /{what} is not there, or cannot be opened",
        "Copy the file to the destination under the same path, or keep it on shared storage.",
    ),
    _cause(
        r"File /?(?P<what>\S+) has bad (?P<why>size|mode|build-id)",
        "the file /{what} has another {why} than on the source",
        "Copy the file to the destination, or keep it on shared storage.",
    ),
    _cause(
        r"(Can't fork for \d+: File exists|Pid \d+ do not match expected|Unable to create a process|PID \d+ mismatch)",
        "a PID that the workload needs is taken on the destination",
        "Try again when that process has ended, or run the workload in a PID namespace of its own.",
    ),
    _cause(
        r"Can't bind inet socket|Can't bind.*Cannot assign requested address",
        "an address of the workload's sockets is not local on this host",
        "Name the address with --address, so that it moves with the workload.",
    ),
    _cause(
        r"(Can't lookup mount=\S+ for fd=(?P<fd>\S+) path=(?P<what>\S+))",
        "descriptor {fd} ({what}) was opened in another mount namespace",
        "Start the workload without descriptors from outside.",
    ),
    _cause(
        r"(tty|TTY).*(external|inherit|dangling|slave)|Found dangling tty",
        "the workload has a terminal open whose other end stays behind",
        "Start it with `setsid`, under systemd, or with its input and output in files.",
    ),
    _cause(
        r"External socket is used|Unix socket .* has unknown|Can't dump half of stream unix",
        "a Unix socket of the workload is connected to a process that does not move",
        "Close that connection, or move both ends together.",
    ),
    _cause(
        r"A session leader of .* is outside of its pid namespace|is not a session leader|shell.?job",
        "the workload does not lead its session",
        "Start it with `setsid`.",
    ),
    _cause(
        r"Connected TCP socket, consider using --tcp-established",
        "the workload has opened a TCP connection since it was looked at",
        "Try again.",
    ),
    _cause(
        r"Can't get rlimit",
        "CRIU may not read the limits of another user's process: it lacks CAP_SYS_RESOURCE",
        "Give phaul's agent that capability.",
    ),
    _cause(r"Unexpected EOF on", "an image is missing or cut short", ""),
    _cause(
        r"(No space left on device|ENOSPC)",
        "the image directory is full",
        "Free memory on that host: images lie in memory while a migration is under way.",
    ),
    _cause(r"(Cannot allocate memory|ENOMEM)", "there is not enough memory", "Free memory on that host."),
    _cause(r"(page.?server|page-xfer|PSI).*", "the page channel broke", "Look at the network between the two hosts."),
    _cause(r"send_fds failed|io_uring", "CRIU cannot dump one of the descriptors (io_uring, for one)", ""),
    _cause(r"[Ss]eccomp", "a seccomp filter of the workload is in the way", ""),
)


def excerpt(text: str, path: Path) -> LogExcerpt:
    """Find the first errors in the text of a CRIU log, and what they are likely to mean."""
    errors: list[str] = []
    for line in text.splitlines():
        match = ERROR_LINE.match(line.strip())
        if match and match["text"] and not NOISE.search(match["text"]) and match["text"] not in errors:
            errors.append(match["text"].strip())
    for error in errors:  # an early one is the cause of those that follow
        for known in CAUSES:
            found = known.pattern.search(error)
            if found:
                return LogExcerpt(
                    tuple(errors[:SHOWN_ERRORS]), known.cause.format(**found.groupdict()), known.hint, str(path)
                )
    return LogExcerpt(tuple(errors[:SHOWN_ERRORS]), "", "", str(path))


def read_excerpt(path: Path) -> LogExcerpt:
    """Do the same with a file; one that is not there gives an empty excerpt."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        text = ""
    return excerpt(text, path)
