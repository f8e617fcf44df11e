"""What the programs of the corpus share: how they live, and a few system calls that Python does not have.

A program sets up what it is named for and then calls `live`, which writes a growing number to its log and makes sure
each time that what it holds is still well. Run on the hosts of a lab; never by the tests' own process.
"""

import ctypes
import os
import struct
import sys
import time
from collections.abc import Callable
from typing import NoReturn

C = ctypes.CDLL(None, use_errno=True)
C.mmap.restype = ctypes.c_void_p
C.syscall.restype = ctypes.c_long
BEAT_SECONDS = 0.02


def live(well: Callable[[], object] = lambda: None) -> None:
    """Beat for ever. `well` raises when something got lost; that ends the program, with the reason in its log."""
    count = 0
    while True:
        well()
        count += 1
        os.write(1, b"beat %d\n" % count)
        time.sleep(BEAT_SECONDS)


def going_on(count: Callable[[], int], seconds: float = 1.0) -> Callable[[], None]:
    """Give a `well` that raises when a count has not grown for so long."""
    last, since = count(), time.monotonic()

    def well() -> None:
        nonlocal last, since
        now = count()
        if now != last:
            last, since = now, time.monotonic()
        assert time.monotonic() - since < seconds, "it does not go on"

    return well


def ok(result: int) -> int:
    """Give the result of a C function, or raise what `errno` says."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(number: int, *arguments: object) -> int:
    """Make a system call by number; those of 424 and up are the same on every architecture."""
    return ok(C.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)))


NEW_MOUNTS, NEW_CGROUPS, NEW_UTS, NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000  # linux/sched.h
NEW_USERS, NEW_PIDS, NEW_NETWORK, NEW_TIME = 0x10000000, 0x20000000, 0x40000000, 0x00000080
OWN_DIRECTORIES, OWN_DESCRIPTORS = 0x00000200, 0x00000400


def unshare(what: int) -> None:
    """Leave what is shared: namespaces, descriptors, directories."""
    ok(C.unshare(what))


def timerfd(clock: int) -> int:
    """Make a timerfd that goes off every 10 ms and never blocks."""
    number = ok(C.timerfd_create(clock, os.O_NONBLOCK))
    ok(C.timerfd_settime(number, 0, ctypes.create_string_buffer(struct.pack("qqqq", 0, 10**7, 0, 10**7)), None))
    return number


def mmap(length: int, protection: int = 3, flags: int = 0x22, descriptor: int = -1) -> int:
    """Map memory (private, anonymous, to read and write, unless said otherwise); give its address."""
    address = C.mmap(None, ctypes.c_size_t(length), protection, flags, descriptor, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


def missing(what: str) -> NoReturn:
    """Give up: the machine that the lab runs on lacks what it takes."""
    print("missing:", what, flush=True)
    sys.exit(0)


def sleep_on() -> None:
    """Do nothing until the end."""
    while True:
        time.sleep(1000)


def child(work: Callable[[], object] = sleep_on) -> int:
    """Start a process of the tree; give its PID."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def stranger(work: Callable[[], object] = sleep_on) -> int:
    """Start a process outside the tree, in a session of its own; give its PID."""
    told, tell = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            os.close(told)
            os.close(tell)
            try:
                work()
            finally:
                os._exit(0)
        os.write(tell, b"%d" % pid)
        os._exit(0)
    os.close(tell)
    os.waitpid(middle, 0)
    with os.fdopen(told) as answer:
        return int(answer.read())
