"""What two tasks have in common, as only the kernel can tell: kcmp(2), Linux >= 3.5 with CONFIG_KCMP.

Called by `workloads.snapshot`. Compares; touches neither task. Needs the right to trace both.
"""

from __future__ import annotations

import ctypes
import os
import platform
from enum import IntEnum

# arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h
_NUMBER = {"x86_64": 312}.get(platform.machine(), 272)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Shared(IntEnum):
    """What can be shared: linux/kcmp.h."""

    MEMORY = 1
    DESCRIPTORS = 2
    DIRECTORIES = 3  # working directory, root directory, umask
    SIGNAL_HANDLERS = 4


def is_shared(what: Shared, one: int, other: int) -> bool:
    """Say whether two tasks, by thread ID, share something; False where the kernel does not tell."""
    arguments = (ctypes.c_long(number) for number in (_NUMBER, one, other, what, 0, 0))
    return int(_libc.syscall(*arguments)) == 0


def differs(what: Shared, one: int, other: int) -> bool:
    """Say whether two tasks certainly do not share something; False where the kernel does not tell."""
    arguments = (ctypes.c_long(number) for number in (_NUMBER, one, other, what, 0, 0))
    answer = int(_libc.syscall(*arguments))
    return answer > 0  # 1 and 2: an order, 3: no order; -1: errno says why not


def kernel_compares() -> bool:
    """Whether this kernel has kcmp."""
    return is_shared(Shared.MEMORY, os.getpid(), os.getpid())
