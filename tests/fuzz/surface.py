"""What a surface is: a name, seeds, and a function that takes one input. The surfaces are in `*_surface(s).py`."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from typing import Protocol

import structlog

from tests.fuzz.sandbox import Sandbox


class Finding(BaseException):
    """The code under test did what it must not. No `except Exception` may swallow it."""


class Surface(Protocol):
    """One thing that strangers' bytes reach."""

    def __init__(self, sandbox: Sandbox) -> None:
        """Set it up; done once."""
        ...

    def take(self, data: bytes) -> None:
        """Take one input. Raises only for a finding."""
        ...

    @staticmethod
    def seeds() -> Iterator[bytes]:
        """Inputs that get far, to begin with."""
        ...


class Reader:
    """Cuts an input into the parts that a surface wants; where it is at its end, zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        """One."""
        return self.take(1)[0] if self else 0

    def number(self) -> int:
        """Two bytes of it."""
        return int(struct.unpack("<H", self.take(2).ljust(2, b"\0"))[0])

    def part(self) -> bytes:
        """A part with its length in two bytes before it."""
        return self.take(self.number())

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def take(self, count: int) -> bytes:
        """So many bytes, or what there is."""
        found = self._data[self._at : self._at + count]
        self._at += len(found)
        return found


def part(content: bytes) -> bytes:
    """What `Reader.part` gives back."""
    return struct.pack("<H", len(content)) + content


def log_nothing() -> None:
    """What strangers send is logged line by line, which would be most of what a run does."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.ReturnLoggerFactory(),
    )
