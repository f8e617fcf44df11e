"""The loader: a process that puts the pages of a restored workload in place while that runs already.

An attendant (`system.attendants`) of `criu.lazy_pages`, one a migration. The agent names the directory WORK to it, in
which CRIU's restore looks for `lazy-pages.socket`, and the one of the images. CRIU's restore hands it the userfaultfd
of every task (CRIU 4.2, criu/uffd.c), and says when the tasks are about to run. From then on the loader loads
everything, what a task waits for first, and ends.

It stands in for `criu lazy-pages`, which may not die: when the last holder of a userfaultfd ends, the kernel gives the
task pages of zeros instead of its memory (seen: the workload crashed at once). So this one never gives up, outlives
the agent, and has a twin, forked as the tasks begin to run, that is told of every change and goes on where it was
killed. That leaves one gap: killed between reading a change and telling it, some microseconds.

What becomes of it stands in WORK/loading, which is locked as long as either lives.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from phaul.criu.lazy_ranges import Run, Unloaded
from phaul.criu.pagemaps import LazyPages
from phaul.system import userfaultfd
from phaul.system.memory import keep_from_oom_killer, page_size_bytes
from phaul.system.userfaultfd import ChangingError, Event, Message, ProcessGoneError
from phaul.units import KIB, MIB

READY = b"ready"
SOCKET = "lazy-pages.socket"  # LAZY_PAGES_SOCK_NAME
STATE_FILE = "loading"
STATE_BYTES = 64
FINISHED = 0x52535446  # LAZY_PAGES_RESTORE_FINISHED
PID = struct.Struct("=i")
CHUNK_BYTES = 1 * MIB  # at a time while nobody waits: a task's fault waits that long at most, 0.2 ms
FAULT_BYTES = 64 * KIB  # around a page that somebody waits for
CHUNKS_A_REPORT = 16
AGAIN_SECONDS = 0.2  # after something failed that is tried again: memory is short
ADDRESSES = (1 << 16, 1 << 47, 1 << 48)  # all that tasks use; woken piece by piece, as some kernels have fewer
CHANGE = struct.Struct(f"=I{userfaultfd.MESSAGE_BYTES}s")  # to the twin: which task, and what it was told
DONE = b"done"
ORDER_BYTES = 2 * 4096 + 1  # two paths (PATH_MAX)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)


class State(StrEnum):
    """How far it is. In WAITING nothing was given to it; FAILING is tried again for ever."""

    WAITING = "waiting"
    LOADING = "loading"
    FAILING = "failing"
    DONE = "done"


def encode_order(work: Path, images: Path) -> bytes:
    """Give what the agent says first."""
    return os.fsencode(work) + b"\0" + os.fsencode(images)


def encode_state(state: State, left: int, total: int) -> bytes:
    """Give the content of the state file; `left` and `total` in bytes."""
    return f"{state} {left} {total}".ljust(STATE_BYTES).encode()


def decode_state(content: bytes) -> tuple[State, int, int]:
    """The opposite. Raises ValueError."""
    state, left, total = content.decode().split()
    return State(state), int(left), int(total)


@dataclass(slots=True, eq=False)
class Task:
    """One process. `fd` is its userfaultfd, -1 once the process is gone. `waiting` are faults to be looked at again."""

    fd: int
    unloaded: Unloaded
    waiting: set[int]


class Loader:
    """Everything that one loader holds. Owns the descriptors that it is given until it ends."""

    def __init__(self, images: Path, state_fd: int) -> None:
        self._images = LazyPages(images)
        self._state_fd = state_fd
        self._sources: dict[int, int] = {}  # number of a pages file to where it is mapped
        self._tasks: list[Task] = []
        self._poll = select.poll()
        self._total = 0
        self._twin: socket.socket | None = None
        self._reported = 0

    def take(self, connection: socket.socket) -> bool:
        """Take what CRIU's restore hands over, serving whoever faults meanwhile. False when it gave up."""
        self._poll.register(connection, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll(AGAIN_SECONDS * 1000 if self._waiting() else None):
                if fd != connection.fileno():
                    self._hear(fd)
                    continue
                word = connection.recv(PID.size, socket.MSG_WAITALL)
                if len(word) < PID.size:
                    return False
                (pid,) = PID.unpack(word)
                if pid == FINISHED:
                    self._poll.unregister(connection)
                    return True
                if pid > 0:  # a zombie has no memory, and comes as a negative number
                    _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
                    self._add(descriptors[0], Unloaded(self._images.runs(pid)))
            self._serve_waiting()

    def load(self) -> None:
        """Load everything; returns when it is done. Whatever fails is tried again: nobody else can do it."""
        self._report(State.LOADING)
        self._start_twin()
        while any(task.unloaded for task in self._tasks) or self._waiting():
            try:
                self._step()
            except Exception:  # noqa: BLE001 - whatever it is, nobody else can load the rest
                self._report(State.FAILING)
                time.sleep(AGAIN_SECONDS)
        self._report(State.DONE)
        if self._twin is not None:
            self._twin.send(DONE)

    def _step(self) -> None:
        for fd, _ in self._poll.poll(0):
            if self._twin is not None and fd == self._twin.fileno():
                self._start_twin()  # the one before has died
            else:
                self._hear(fd)
        self._serve_waiting()
        task = next((task for task in self._tasks if task.unloaded), None)
        if task is None:
            return
        self._put(task, task.unloaded.next(CHUNK_BYTES))
        self._reported += 1
        if self._reported % CHUNKS_A_REPORT == 0:
            self._report(State.LOADING)

    def _add(self, fd: int, unloaded: Unloaded) -> None:
        self._tasks.append(Task(fd, unloaded, set()))
        self._total += unloaded.bytes
        self._poll.register(fd, select.POLLIN)
        for number in range(len(self._sources), len(self._images.files)):
            self._sources[number] = _mapped(self._images.files[number])

    def _hear(self, fd: int) -> None:
        """Read all that the kernel has to tell of one task."""
        index = next(index for index, task in enumerate(self._tasks) if task.fd == fd)
        while self._tasks[index].fd >= 0 and (raw := userfaultfd.read_message(fd)):
            message = userfaultfd.parse(raw)
            if message.event == Event.FAULT:
                self._tasks[index].waiting.add(message.start & -page_size_bytes())
                continue
            if self._twin is not None:
                self._tell(CHANGE.pack(index, raw), [message.fd] if message.event == Event.FORK else [])
            self._change(index, message)

    def _change(self, index: int, message: Message) -> None:
        unloaded = self._tasks[index].unloaded
        match message.event:
            case Event.FORK:
                self._add(message.fd, unloaded.copy())
            case Event.REMAP:
                unloaded.move(message.start, message.end, message.to)
            case _:
                unloaded.drop(message.start, message.end)

    def _waiting(self) -> bool:
        return any(task.waiting for task in self._tasks)

    def _serve_waiting(self) -> None:
        for task in self._tasks:
            for address in list(task.waiting):
                task.waiting.discard(address)
                run = task.unloaded.around(address, FAULT_BYTES)
                if not self._put(task, run or Run(address, address + page_size_bytes(), -1, 0)):
                    task.waiting.add(address)

    def _put(self, task: Task, run: Run) -> bool:
        """Put a run in place, or zeros where it has no content. False when it is to be tried again."""
        try:
            if run.file < 0:
                done = userfaultfd.zero(task.fd, run.start, run.end - run.start)
            else:
                source = self._sources[run.file] + run.offset
                done = userfaultfd.copy(task.fd, run.start, source, run.end - run.start)
        except ChangingError:
            return False
        except ProcessGoneError:
            self._let_go(task)
            return True
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            if run.end - run.start > page_size_bytes():  # the task has split the mapping
                middle = run.start + (run.end - run.start) // 2 // page_size_bytes() * page_size_bytes()
                return self._put(task, run.cut(run.start, middle)) and self._put(task, run.cut(middle, run.end))
            done = page_size_bytes()  # it has no mapping there any more
        if done == 0:  # there already: put in place before, and told to nobody
            done = page_size_bytes()
            userfaultfd.wake(task.fd, run.start, done)
        task.unloaded.drop(run.start, run.start + done)
        return done == run.end - run.start

    def _let_go(self, task: Task) -> None:
        self._poll.unregister(task.fd)
        os.close(task.fd)
        task.fd, task.unloaded = -1, Unloaded(())
        task.waiting.clear()

    def _report(self, state: State) -> None:
        left = sum(task.unloaded.bytes for task in self._tasks)
        os.pwrite(self._state_fd, encode_state(state, left, max(self._total, left)), 0)

    def _tell(self, data: bytes, descriptors: Sequence[int]) -> None:
        assert self._twin is not None
        try:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            self._twin.sendmsg([data], ancillary)
        except OSError:
            pass  # it has died: the poll tells, and the next one is forked with what we know by then

    def _start_twin(self) -> None:
        """Fork the one that goes on should this one be killed."""
        if self._twin is not None:
            self._poll.unregister(self._twin)
            self._twin.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            theirs.close()
            self._twin = ours
            self._poll.register(ours, 0)  # POLLHUP is always told
            return
        ours.close()
        self._twin = None
        if self._stand_by(theirs):
            os._exit(0)
        theirs.close()
        for task in self._tasks:
            if task.fd >= 0:
                _wake_all(task.fd)
        self._start_twin()

    def _stand_by(self, other: socket.socket) -> bool:
        """Follow what the other one does. True when it is done, False when it has died: then this one goes on."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(other, CHANGE.size, 1)
            if data == DONE:
                return True
            if not data:
                return False
            index, raw = CHANGE.unpack(data)
            message = userfaultfd.parse(raw)
            fd = descriptors[0] if descriptors else -1
            self._change(index, Message(message.event, message.start, message.end, message.to, fd))


def _wake_all(fd: int) -> None:
    """Have every waiting task fault once more: what it waits for may have been told to the one that was killed."""
    for start, end in itertools.pairwise(ADDRESSES):
        try:
            userfaultfd.wake(fd, start, end - start - page_size_bytes())
        except OSError:
            continue  # beyond what this kernel gives to tasks


def _mapped(path: Path) -> int:
    """Map a file for reading; give the address. It stays until the process ends, whoever unmounts or unlinks it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        address = _libc.mmap(None, max(size, 1), mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    finally:
        os.close(fd)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap", str(path))
    return int(address)


def main(argv: Sequence[str]) -> int:
    """Wait for CRIU's restore, load, end."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # who stops the agent must not stop this one
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps twins
    keep_from_oom_killer()
    agent = socket.socket(fileno=int(argv[1]))
    order = agent.recv(ORDER_BYTES)
    if not order:
        return 0  # the agent has no use for us, or has died
    work, images = map(os.fsdecode, order.split(b"\0"))
    os.chdir(work)  # a socket's path may have 107 bytes
    state_fd = os.open(STATE_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(state_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.pwrite(state_fd, encode_state(State.WAITING, 0, 0), 0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        Path(SOCKET).unlink(missing_ok=True)
        listener.bind(SOCKET)
        listener.listen(1)
        try:
            agent.send(READY)
            readable, _, _ = select.select([agent, listener], [], [])
        except OSError:
            return 0  # the agent has died already
        finally:
            Path(SOCKET).unlink(missing_ok=True)
        if listener not in readable:
            return 0  # the agent has no use for us, or has died
        connection, _ = listener.accept()
    loader = Loader(Path(images), state_fd)
    with connection:
        if not loader.take(connection):
            return 0
    loader.load()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
