"""The audit log on disk: a JSON object a line, only ever appended to, on the disk when the call returns.

The file is opened for every record, so that it may be renamed away at any time, by logrotate or by hand; several
processes may append. Written by `agent.audit` and by `phaul trust`, read by `phaul audit`.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from phaul.errors import PhaulError, Where

LONGEST_LINE_BYTES = 64 * 1024


class AuditError(PhaulError):
    """The audit log could not be written, so nothing was begun that it should tell of."""

    where = Where.UNTOUCHED
    default_hint = "Is its disk full or read-only? `phaul agent --audit-log FILE` puts it elsewhere."


def append(path: Path, record: Mapping[str, object]) -> None:
    """Add a record. Blocks for the disk. Raises `AuditError`."""
    line = json.dumps(record, ensure_ascii=True).encode()
    if len(line) > LONGEST_LINE_BYTES:
        raise AuditError(f"a record of {len(line)} bytes is too long for the audit log")
    try:
        _append(path, line + b"\n")
    except OSError as error:
        raise AuditError(f"the audit log {path} could not be written: {error.strerror}") from error


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # a crash has cut the last one short
        if os.write(descriptor, line) != len(line):
            raise OSError(0, "only a part of a record was written")
        os.fsync(descriptor)
        if not size:
            _sync_directory(path.parent)
    finally:
        os.close(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[dict[str, object]]:
    """Every record, oldest first, of the log and of what it was before it was renamed (NAME.1, NAME-20260101.gz, ...).

    A line that is no record is left out. Raises OSError where a file may not be read.
    """
    files = sorted([*path.parent.glob(f"{path.name}[.-]*"), path], key=lambda each: _modified(each))
    for file in files:
        if not file.exists():
            continue
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
