"""This machine's end of the connection to a lab's virtual machine, whose end is `phaul.lab.guest`.

A library for `phaul.lab.vm_host` and `phaul.lab.guest_path`, which ask in their own process, and a program that stands
for one command in the machine: `guest_client.py NETWORK_PID ADDRESS REQUEST`. It passes on streams, signals and the
exit status. Only the standard library and `guest`, so that the program starts in some milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import socket
import struct
import sys
import termios
import threading
import tty
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from phaul.lab import guest

CONNECT_SECONDS = 10.0
CLONE_NEWNET = 0x40000000  # linux/sched.h
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class GuestChannel:
    """Requests to one virtual machine, answered one after the other. May be used by several threads."""

    def __init__(self, network_pid: int, address: str) -> None:
        self._network_pid = network_pid
        self._address = address
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None

    def ask(self, do: str, *, timeout_seconds: float = CONNECT_SECONDS, **more: Any) -> Any:
        """Send a request and give its value. Raises the `OSError` that it met there, or that of the connection."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = connect(self._network_pid, self._address, timeout_seconds)
                self._connection.settimeout(timeout_seconds)
                guest.send(self._connection, guest.REQUEST, as_request(do, more))
                answer = json.loads(guest.receive(self._connection)[1])
            except BaseException:
                self._close()
                raise
        if "errno" in answer:
            raise OSError(answer["errno"], answer["reason"], answer["file"])
        return answer["value"]

    def close(self) -> None:
        """Give the connection back; the next request makes a new one."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def as_request(do: str, more: Mapping[str, Any]) -> bytes:
    """The data of a request's frame."""
    return json.dumps({"do": do, **more}).encode()


def connect(network_pid: int, address: str, timeout_seconds: float) -> socket.socket:
    """Connect from within the network namespace of a process, which this thread and all others stay out of."""
    made: list[socket.socket | BaseException] = []

    def make() -> None:
        try:
            _enter_network(network_pid)
            connection = socket.create_connection((address, guest.PORT), timeout_seconds)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.append(connection)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            made.append(error)

    # A namespace is entered by a thread, and a socket stays in the one in which it was made.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]


def _enter_network(pid: int) -> None:
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def stand_for(connection: socket.socket, request: dict[str, Any]) -> int:
    """Pass on everything between our streams and those of the command; give its status, negative for a signal."""
    connection.settimeout(None)
    guest.send(connection, guest.REQUEST, as_request("run", request))
    # Handlers run between two system calls of this one thread, so that a frame is never cut by another.
    pending: list[int] = []
    wake, awake = socket.socketpair()
    awake.setblocking(False)
    signal.set_wakeup_fd(awake.fileno(), warn_on_full_buffer=False)
    for number in FORWARDED:
        signal.signal(number, lambda number, _: pending.append(number))
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        if request["stdin"]:
            _register_input(selector)
        while True:
            for key, _ in selector.select():
                if key.fileobj is connection:
                    kind, data = guest.receive(connection)
                    if kind == guest.EXIT:
                        status: int = struct.unpack(">i", data)[0]
                        return status
                    _write_all(1 if kind == guest.STDOUT else 2, data)
                elif key.fileobj is wake:
                    wake.recv(64)
                    while pending:
                        guest.send(connection, guest.SIGNAL, struct.pack(">i", pending.pop(0)))
                else:
                    data = os.read(0, guest.CHUNK_BYTES)
                    guest.send(connection, guest.STDIN, data)
                    if not data:
                        selector.unregister(0)


def _register_input(selector: selectors.BaseSelector) -> None:
    try:
        selector.register(0, selectors.EVENT_READ)
    except PermissionError:
        # An ordinary file cannot be waited for, and need not: it is read by a pipe's other end.
        read, write = os.pipe()
        with open(0, "rb", closefd=False) as file:
            data = file.read()
        threading.Thread(target=_feed, args=(write, data), daemon=True).start()
        os.dup2(read, 0)
        selector.register(0, selectors.EVENT_READ)


def _feed(descriptor: int, data: bytes) -> None:
    _write_all(descriptor, data)
    os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _in_terminal(connection: socket.socket, request: dict[str, Any]) -> int:
    """The same with a terminal on both sides: ours passes every key, Ctrl-C too."""
    before = termios.tcgetattr(0)
    size = os.get_terminal_size(0)
    tty.setraw(0)
    try:
        request["environment"] |= {"LINES": str(size.lines), "COLUMNS": str(size.columns)}
        return stand_for(connection, request)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def main(argv: list[str]) -> int:
    """Stand for one command, and end as it has ended."""
    request = json.loads(argv[3])
    try:
        connection = connect(int(argv[1]), argv[2], CONNECT_SECONDS)
        status = (_in_terminal if request["terminal"] else stand_for)(connection, request)
    except OSError as error:
        sys.stderr.write(f"The virtual machine does not answer: {error.strerror or error}\n")
        return 255
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv))
