"""userfaultfd(2) from the side of whoever fills in the pages: what the kernel tells, and how a page is put in place.

Used by `criu.loader`, which is given descriptors that CRIU's restore has opened and registered. Numbers from
linux/userfaultfd.h (Linux 6.12); they are the same on every architecture that CRIU runs on but 32-bit ones and ppc64.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from enum import IntEnum

MESSAGE_BYTES = 32  # struct uffd_msg
_HEAD = struct.Struct("=BxHI")
_THREE = struct.Struct("=QQQ")
_FORKED = struct.Struct("=I")

_COPY = struct.Struct("=QQQQq")  # dst, src, len, mode, how much was copied or -errno
_COPY_REQUEST = 0xC028AA03
_ZERO = struct.Struct("=QQQq")  # start, len, mode, how much was done or -errno
_ZERO_REQUEST = 0xC020AA04
_RANGE = struct.Struct("=QQ")
_WAKE_REQUEST = 0x8010AA02


class Event(IntEnum):
    """What a message is about (UFFD_EVENT_*)."""

    FAULT = 0x12
    FORK = 0x13
    REMAP = 0x14
    REMOVE = 0x15
    UNMAP = 0x16


@dataclass(frozen=True, slots=True)
class Message:
    """One message. FAULT: `start` is the address. REMOVE, UNMAP: from `start` to `end`. REMAP: `start` became `to`.

    FORK: `fd` is the userfaultfd of the child, ours from then on.
    """

    event: int
    start: int = 0
    end: int = 0
    to: int = 0
    fd: int = -1


class ProcessGoneError(Exception):
    """The memory behind a userfaultfd is gone: its process has ended, or executes another program."""


class ChangingError(Exception):
    """The memory is being changed by its process: the messages that tell of it are to be read first."""


def read_message(fd: int) -> bytes:
    """Read one message of a non-blocking userfaultfd; b"" where there is none."""
    try:
        return os.read(fd, MESSAGE_BYTES)
    except BlockingIOError:
        return b""


def parse(message: bytes) -> Message:
    """Read a message."""
    event, _, _ = _HEAD.unpack_from(message)
    one, two, three = _THREE.unpack_from(message, _HEAD.size)
    match event:
        case Event.FAULT:
            return Message(event, start=two)  # the flags come first
        case Event.FORK:
            return Message(event, fd=_FORKED.unpack_from(message, _HEAD.size)[0])
        case Event.REMAP:
            return Message(event, start=one, to=two, end=one + three)
        case _:
            return Message(event, start=one, end=two)


def copy(fd: int, address: int, source: int, count: int) -> int:
    """Put `count` bytes from our own address `source` in place, and wake who waits for them. Give how many it were.

    0 where the first page is there already. Fewer than asked where a later one is, or the process changes its memory.
    Raises `ChangingError`, `ProcessGoneError`, OSError ENOENT where nothing is registered (any more) at the address.
    """
    done = bytearray(_COPY.pack(address, source, count, 0, 0))
    return _outcome(fd, _COPY_REQUEST, done, count, _COPY)


def zero(fd: int, address: int, count: int) -> int:
    """Put pages of zeros in place; otherwise as `copy`."""
    return _outcome(fd, _ZERO_REQUEST, bytearray(_ZERO.pack(address, count, 0, 0)), count, _ZERO)


def wake(fd: int, address: int, count: int) -> None:
    """Wake who waits for pages that are there."""
    fcntl.ioctl(fd, _WAKE_REQUEST, bytearray(_RANGE.pack(address, count)))


def _outcome(fd: int, request: int, argument: bytearray, count: int, layout: struct.Struct) -> int:
    try:
        fcntl.ioctl(fd, request, argument)
        return count
    except OSError as error:
        if error.errno == errno.EEXIST:
            return 0
        if error.errno in (errno.ESRCH, errno.ENOSPC):  # ENOSPC up to Linux 4.13
            raise ProcessGoneError from error
        if error.errno != errno.EAGAIN:
            raise
        done = int(layout.unpack(argument)[-1])
        if done <= 0:
            raise ChangingError from error
        return done
