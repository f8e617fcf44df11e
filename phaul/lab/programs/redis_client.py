"""A client of Redis that keeps writing and reading numbers over one connection, and remembers how that went.

Run on a host of the lab by `phaul.lab.demo` as `redis_client.py CONTROL_SOCKET HOST PORT`. It never connects a second
time: a connection that breaks stays broken and is told. Each line on the control socket is a JSON object, answered
with one: `fill` (`mib`), `begin`, `state`, `window` (`start_ns`, `end_ns`), `verify`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import select
import socket
import sys
import time
from typing import Any, TypeAlias

MIB = 1 << 20
BLOCK_BYTES = 64 << 10
BATCH = 64  # commands on their way at once when filling and reading back: 4 MiB
PAUSE_SECONDS = 0.0005  # between operations: some thousand a second would take a core from those who are migrating
REPLY_DEADLINE_SECONDS = 30.0
READ_BACK_DISTANCE = 50  # what is read is one of the last so many that were written
TCP_NODELAY_ON = 1

Reply: TypeAlias = "bytes | int | list[Reply] | None"


class ReplyError(Exception):
    """The server refused a command."""


class Redis:
    """One connection, in Redis' protocol (RESP2). Owns its socket; never connects again."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=REPLY_DEADLINE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, TCP_NODELAY_ON)
        self._replies = self.socket.makefile("rb")

    def ask(self, *command: bytes) -> Reply:
        """Send one command and give its reply."""
        return self.ask_all([command])[0]

    def ask_all(self, commands: list[tuple[bytes, ...]]) -> list[Reply]:
        """Send several commands in one go and give their replies."""
        self.socket.sendall(b"".join(map(encode, commands)))
        return [self._reply() for _ in commands]

    def close(self) -> None:
        """End the connection."""
        self._replies.close()
        self.socket.close()

    def _reply(self) -> Reply:
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return rest
            case b"-":
                raise ReplyError(rest.decode(errors="replace"))
            case b":":
                return int(rest)
            case b"$" if rest == b"-1":
                return None
            case b"$":
                data = self._replies.read(int(rest) + 2)
                if len(data) < int(rest) + 2:
                    raise ConnectionResetError("the server closed the connection")
                return data[:-2]
            case b"*":
                return [self._reply() for _ in range(int(rest))]
            case _:
                raise ReplyError(f"no reply of Redis: {line!r}")


def encode(command: tuple[bytes, ...]) -> bytes:
    """Give a command as Redis wants it."""
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in command)


def number_value(number: int) -> bytes:
    """What is written under a number: nothing that another number or an empty page could be taken for."""
    return b"%d %s" % (number, hashlib.sha256(b"%d" % number).hexdigest().encode())


def block_value(index: int) -> bytes:
    """Random bytes that can be made again for comparing."""
    return random.Random(index).randbytes(BLOCK_BYTES)


class Client:
    """Writes and reads, one operation after the other.

    Invariant: `written` numbers were acknowledged by the server. `failures` is empty as long as nothing went wrong; at
    the first failure the client stops.
    """

    def __init__(self, host: str, port: int) -> None:
        self.redis = Redis(host, port)
        self.running = False
        self.blocks = 0
        self.written = 0
        self.wrong = 0
        self.resets = 0
        self.failures: list[str] = []
        self.ended_ns: list[int] = []  # of every operation, in order
        self._reading = False

    def operate(self) -> None:
        """Do the next operation: write a number, read one back, and so on."""
        try:
            if self._reading:
                number = random.randint(max(1, self.written - READ_BACK_DISTANCE), self.written)
                self.wrong += self.redis.ask(b"GET", b"number:%d" % number) != number_value(number)
            else:
                number = self.written + 1
                self.redis.ask(b"SET", b"number:%d" % number, number_value(number))
                self.written = number
        except (OSError, ReplyError) as error:
            self._fail(error)
            return
        self._reading = not self._reading
        self.ended_ns.append(time.time_ns())

    def obey(self, request: dict[str, Any]) -> dict[str, object]:
        """Answer one request of the control socket."""
        try:
            match request["do"]:
                case "fill":
                    self._fill(request["mib"])
                case "begin":
                    self.running = True
                case "window":
                    return self._window(request["start_ns"], request["end_ns"])
                case "verify":
                    self.running = False
                    return {**(self._verify() if not self.failures else {}), **self._state()}
            return self._state()
        except (OSError, ReplyError) as error:
            self._fail(error)
            return self._state()

    def _fail(self, error: Exception) -> None:
        self.running = False
        self.resets += isinstance(error, ConnectionError)
        self.failures.append(f"{type(error).__name__}: {error}")

    def _fill(self, mib: int) -> None:
        self.blocks = mib * MIB // BLOCK_BYTES
        for first in range(0, self.blocks, BATCH):
            indices = range(first, min(first + BATCH, self.blocks))
            self.redis.ask_all([(b"SET", b"block:%d" % index, block_value(index)) for index in indices])

    def _state(self) -> dict[str, object]:
        state: dict[str, object] = {
            "operations": len(self.ended_ns),
            "written": self.written,
            "wrong": self.wrong,
            "resets": self.resets,
            "failures": self.failures,
            "own_port": self.redis.socket.getsockname()[1],
        }
        if not self.failures:
            information = self.redis.ask(b"INFO", b"server")
            assert isinstance(information, bytes)
            fields = dict(line.split(":", 1) for line in information.decode().splitlines() if ":" in line)
            state["server_pid"] = int(fields["process_id"])
            state["run_id"] = fields["run_id"]
            state["connection_id"] = self.redis.ask(b"CLIENT", b"ID")
        return state

    def _window(self, start_ns: int, end_ns: int) -> dict[str, object]:
        """The operations that ended in a window of time, and the longest pause between two that reaches into it."""
        ends = self.ended_ns
        within = sum(start_ns <= end <= end_ns for end in ends)
        pauses = itertools.pairwise(ends)
        longest = max((after - before for before, after in pauses if after >= start_ns and before <= end_ns), default=0)
        return {
            "before": sum(end < start_ns for end in ends),
            "within": within,
            "after": sum(end > end_ns for end in ends),
            "longest_gap_ns": longest,
        }

    def _verify(self) -> dict[str, object]:
        """Read everything back and count what is not there as it was written."""
        lost_numbers = self._count_wrong("number", range(1, self.written + 1), number_value)
        lost_blocks = self._count_wrong("block", range(self.blocks), block_value)
        return {"blocks": self.blocks, "lost_numbers": lost_numbers, "lost_blocks": lost_blocks}

    def _count_wrong(self, kind: str, numbers: range, value: Any) -> int:
        wrong = 0
        for first in range(0, len(numbers), BATCH):
            batch = numbers[first : first + BATCH]
            replies = self.redis.ask_all([(b"GET", b"%s:%d" % (kind.encode(), number)) for number in batch])
            wrong += sum(reply != value(number) for number, reply in zip(batch, replies, strict=True))
        return wrong


def main() -> None:
    """Serve the control socket, and operate whenever it asks for nothing."""
    path, host, port = sys.argv[1:]
    client = Client(host, int(port))
    control = socket.socket(socket.AF_UNIX)
    control.bind(path)
    control.listen()
    peers: dict[socket.socket, bytes] = {}
    while True:
        readable, _, _ = select.select([control, *peers], [], [], PAUSE_SECONDS if client.running else None)
        for ready in readable:
            if ready is control:
                peers[control.accept()[0]] = b""
                continue
            data = ready.recv(65536)
            if not data:
                del peers[ready]
                ready.close()
                continue
            *lines, peers[ready] = (peers[ready] + data).split(b"\n")
            for line in lines:
                ready.sendall(json.dumps(client.obey(json.loads(line))).encode() + b"\n")
        if client.running:
            client.operate()


if __name__ == "__main__":
    main()
