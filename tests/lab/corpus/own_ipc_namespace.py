"""System V objects of its own: shared memory (one segment that nobody has attached as well), semaphores, messages."""
# answer: moves

import ctypes
import struct

from .life import NEW_IPC, C, child, live, ok, unshare

unshare(NEW_IPC)
C.shmat.restype = ctypes.c_void_p
PAGE = 4096

small = ok(C.shmget(4711, 56, 0o1600))
large = ok(C.shmget(0, 40 * PAGE, 0o1600))
nobodys = ok(C.shmget(0, 3 * PAGE, 0o1600))
at = [C.shmat(number, None, 0) for number in (small, large, nobodys)]
ctypes.memset(at[0], 1, 56)
ctypes.memset(at[1] + 7 * PAGE, 2, 5 * PAGE)
ctypes.memset(at[2] + PAGE, 3, PAGE)
ok(C.shmdt(ctypes.c_void_p(at[2])))

semaphore = ok(C.semget(0, 1, 0o1600))
ok(C.semop(semaphore, ctypes.create_string_buffer(struct.pack("Hhh", 0, 5, 0)), 1))
queue = ok(C.msgget(0, 0o1600))
ok(C.msgsnd(queue, ctypes.create_string_buffer(struct.pack("l", 1) + b"hello"), 5, 0))
received = ctypes.create_string_buffer(64)
child()


def well() -> None:
    assert ok(C.shmget(4711, 56, 0)) == small
    assert ctypes.string_at(at[0], 57) == b"\1" * 56 + b"\0"
    assert ctypes.string_at(at[1] + 7 * PAGE, 6 * PAGE) == b"\2" * 5 * PAGE + b"\0" * PAGE
    again = C.shmat(nobodys, None, 0)
    assert ctypes.string_at(again, 2 * PAGE) == b"\0" * PAGE + b"\3" * PAGE
    ok(C.shmdt(ctypes.c_void_p(again)))
    assert ok(C.semctl(semaphore, 0, 12)) == 5  # GETVAL
    assert ok(C.msgrcv(queue, received, 56, 1, 0)) == 5
    assert received.raw[8:13] == b"hello"
    ok(C.msgsnd(queue, received, 5, 0))


live(well)
