"""Journals on disk: one file a migration, a JSON record a line with its checksum, fsynced record by record.

Implements `migration.journal.Journal`; made by `agent.journals`. A last line that was cut by a crash is dropped: what
it announced was not begun. Nothing else is ever changed or removed here.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import structlog

from phaul.errors import PhaulError

log = structlog.get_logger(__name__)


class JournalError(PhaulError):
    """The journal could not be written, so what it should announce was not done."""

    default_hint = "Is the disk under the agent's state directory full or read-only?"


def encode_line(mark: str, data: dict[str, object]) -> bytes:
    """Give one line: checksum, space, JSON."""
    body = json.dumps({"mark": mark, "data": data}, separators=(",", ":"), sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode_lines(content: bytes) -> Iterator[tuple[str, dict[str, object]]]:
    """Give the records of a file, up to the first that is damaged or cut short."""
    for line in content.split(b"\n")[:-1]:
        checksum, _, body = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(body):
            return
        record = json.loads(body)
        yield str(record["mark"]), dict(record["data"])


class JournalFile:
    """One append-only file. Owns its descriptor until `close`; opened on the first write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._appending = threading.Lock()  # a writer that was cancelled leaves its thread at work
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        self.lines: list[tuple[str, dict[str, object]]] = list(decode_lines(content))
        self._good_bytes = sum(len(encode_line(mark, data)) for mark, data in self.lines)
        if self._good_bytes < len(content):
            log.warning("journal.cut", path=str(path), dropped_bytes=len(content) - self._good_bytes)

    def __len__(self) -> int:
        return len(self.lines)

    async def append(self, mark: str, data: dict[str, object]) -> None:
        """Write a record and wait until the disk has it. Raises `JournalError`."""
        try:
            await asyncio.to_thread(self._append, encode_line(mark, data))
        except OSError as error:
            raise JournalError(f"the journal {self._path} could not be written: {error.strerror}") from error
        self.lines.append((mark, data))

    def _append(self, line: bytes) -> None:
        with self._appending:
            self._append_alone(line)

    def _append_alone(self, line: bytes) -> None:
        if self._fd < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._fd, self._good_bytes)
            _sync_directories(self._path.parent)
        os.pwrite(self._fd, line, self._good_bytes)
        os.fdatasync(self._fd)
        self._good_bytes += len(line)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _sync_directories(directory: Path) -> None:
    """Make the file's name, and its directory's, as durable as its content."""
    for each in (directory, directory.parent):
        fd = os.open(each, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
