"""What a lab's virtual machine does for whoever holds it: runs commands, reads and writes files, sends signals.

Run inside the machine by its systemd, as a plain script with the image's own Python, without phaul; its other end is
`phaul.lab.guest_client`. It listens on the management network, which joins nothing but the machine and its maker. A
connection carries frames: requests in JSON and an answer to each, and after the request to run a command that command's
streams, to its end. Never decides anything.
"""

from __future__ import annotations

import json
import os
import pty
import selectors
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

PORT = 7420
HEADER = struct.Struct(">cI")  # what a frame carries, and how many bytes
REQUEST, ANSWER = b"q", b"a"
STDIN, STDOUT, STDERR, EXIT, SIGNAL = b"i", b"o", b"e", b"x", b"s"
CHUNK_BYTES = 1 << 16
FILE_METHODS = frozenset(
    (
        *("chmod", "exists", "glob", "is_dir", "is_file", "is_symlink", "iterdir", "mkdir", "read_bytes", "readlink"),
        *("rename", "rglob", "rmdir", "stat", "touch", "unlink", "write_bytes"),
    )
)


def main() -> None:
    """Serve for ever, a thread a connection."""
    server = socket.create_server(("", PORT))
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def serve(connection: socket.socket) -> None:
    """Answer the requests of one connection."""
    with connection:
        try:
            while True:
                request = json.loads(receive(connection)[1])
                if request["do"] == "run":
                    run(connection, request)
                    return
                send(connection, ANSWER, json.dumps(answer(request)).encode())
        except ConnectionError:
            pass  # whoever asked has all that it wanted


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what one line asks for."""
    try:
        match request["do"]:
            case "file":
                return {"value": as_json(call_path(request["path"], request["method"], request["arguments"]))}
            case "kill":
                os.kill(request["pid"], request["number"])
            case "clock":
                time.clock_settime_ns(time.CLOCK_REALTIME, request["unix_ns"])
        return {"value": None}
    except OSError as error:
        return {"errno": error.errno, "reason": error.strerror, "file": str(error.filename or "")}


def call_path(path: str, method: str, arguments: list[Any]) -> Any:
    """Call a method of `pathlib.Path`; bytes come as Latin-1."""
    if method not in FILE_METHODS:
        raise OSError(38, f"no such method: {method}")
    if method == "write_bytes":
        arguments = [arguments[0].encode("latin-1")]
    return getattr(Path(path), method)(*arguments)


def as_json(value: Any) -> Any:
    """Give a value as JSON has it: bytes as Latin-1, paths as strings, `stat` and generators as lists."""
    match value:
        case bytes():
            return value.decode("latin-1")
        case Path():
            return str(value)
        case os.stat_result():
            return list(value)
        case None | bool() | int() | str():
            return value
    return [as_json(each) for each in value]


def run(connection: socket.socket, request: dict[str, Any]) -> None:
    """Run a command; when the other side goes away first, the command gets a SIGTERM."""
    try:
        command = Command(request)
    except OSError as error:
        send(connection, STDERR, f"{request['argv'][0]}: {error.strerror}\n".encode())
        send(connection, EXIT, struct.pack(">i", 127))
        return
    try:
        command.converse(connection)
        send(connection, EXIT, struct.pack(">i", command.wait()))
    except OSError:
        command.signal(signal.SIGTERM)
        command.wait()


class Command:
    """A command and the ends of its streams that are ours. Owns the process, which leads a session."""

    def __init__(self, request: dict[str, Any]) -> None:
        argv, environment = request["argv"], request["environment"]
        self._outputs: dict[int, bytes] = {}
        self._terminal = bool(request["terminal"])
        if self._terminal:
            self._pid, self._stdin = _start_in_terminal(argv, environment)
            self._outputs[self._stdin] = STDOUT
            self._child: subprocess.Popen[bytes] | None = None
        else:
            self._child = subprocess.Popen(
                argv,
                env=environment,
                cwd="/root",
                stdin=subprocess.PIPE if request["stdin"] else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._pid = self._child.pid
            assert self._child.stdout is not None
            assert self._child.stderr is not None
            self._stdin = self._child.stdin.fileno() if self._child.stdin else -1
            self._outputs = {self._child.stdout.fileno(): STDOUT, self._child.stderr.fileno(): STDERR}

    def converse(self, connection: socket.socket) -> None:
        """Carry the streams until both outputs have ended. Raises `OSError` when the other side has gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            for output in self._outputs:
                selector.register(output, selectors.EVENT_READ)
            while self._outputs:
                for key, _ in selector.select():
                    if key.fileobj is connection:
                        self._take(connection)
                    elif not self._give(connection, key.fd):
                        selector.unregister(key.fd)
                        del self._outputs[key.fd]

    def signal(self, number: int) -> None:
        """Signal the command and whatever it has started in its session's first group."""
        try:
            os.killpg(self._pid, number)
        except ProcessLookupError:
            pass

    def wait(self) -> int:
        """Give how it ended: a status, or the negative number of a signal."""
        if self._child is None:
            _, status = os.waitpid(self._pid, 0)
            os.close(self._stdin)
            return os.waitstatus_to_exitcode(status)
        with self._child:  # closes the pipes
            return self._child.wait()

    def _give(self, connection: socket.socket, output: int) -> bool:
        try:
            data = os.read(output, CHUNK_BYTES)
        except OSError:
            data = b""  # a terminal whose last process has ended
        if data:
            send(connection, self._outputs[output], data)
        return bool(data)

    def _take(self, connection: socket.socket) -> None:
        kind, data = receive(connection)
        if kind == SIGNAL:
            self.signal(struct.unpack(">i", data)[0])
        elif kind == STDIN and self._stdin >= 0:
            try:
                _write_all(self._stdin, data)
            except OSError:
                pass  # it does not read any more
            if not data and self._child and self._child.stdin:
                self._child.stdin.close()
                self._stdin = -1


def send(connection: socket.socket, kind: bytes, data: bytes) -> None:
    """Send a frame."""
    connection.sendall(HEADER.pack(kind, len(data)) + data)


def receive(connection: socket.socket) -> tuple[bytes, bytes]:
    """Receive a frame. Raises `ConnectionError` at the end of the connection."""
    kind, size = HEADER.unpack(_receive_all(connection, HEADER.size))
    return kind, _receive_all(connection, size)


def _receive_all(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the other side has gone")
        data += more
    return data


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _start_in_terminal(argv: list[str], environment: dict[str, str]) -> tuple[int, int]:
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.chdir("/root")
            os.execvpe(argv[0], argv, environment)
        except OSError as error:
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)
    return pid, terminal


if __name__ == "__main__":
    main()
