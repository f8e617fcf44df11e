"""Runs a program that will not run as root, as root: asked who it is, the kernel tells it another user's number.

For machines whose root lacks CAP_SYS_RESOURCE, where no process of another user can be dumped. By a seccomp filter,
which children inherit and CRIU carries. Called as `python3 -m witness.not_root PROGRAM ARGUMENTS`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

# A system call that the filter ends with error N returns -N, which glibc hands on as a user's number.
ERROR = 2
USER = (1 << 32) - ERROR
NUMBERS = {"x86_64": (102, 107), "aarch64": (174, 175)}  # getuid, geteuid

PR_SET_SECCOMP, FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h: BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def disguise() -> None:
    """Be told the number from now on."""
    getuid, geteuid = NUMBERS[platform.machine()]
    code = [(LOAD, 0, 0, 0), (EQUAL, 1, 0, getuid), (EQUAL, 0, 1, geteuid), (RETURN, 0, 0, ERRNO | ERROR)]
    code.append((RETURN, 0, 0, ALLOW))
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    program = ctypes.create_string_buffer(struct.pack("H6xQ", len(code), ctypes.addressof(text)))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_SECCOMP, FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")


if __name__ == "__main__":
    disguise()
    os.execvp(sys.argv[1], sys.argv[1:])
