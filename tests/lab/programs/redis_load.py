"""Load for Redis over one connection: `redis_load.py ADDRESS PORT` sets, reads and counts with numbered values.

Runs on the client. Every reply is compared with what it must be. Reads commands from standard input: `report`
and `brief` print one line of JSON, `finish` reads everything again that was ever set, and ends.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import sys
import time
from typing import BinaryIO

PAUSE_SECONDS = 0.002
PATIENCE_SECONDS = 40.0
AT_ONCE = 500
VALUE_BYTES = 200

Reply = bytes | int | list["Reply"] | None


class Redis:
    """As much of RESP2 as is needed (redis.io, "Redis serialization protocol specification")."""

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.create_connection((address, port), timeout=PATIENCE_SECONDS)
        self._replies: BinaryIO = self._socket.makefile("rb")

    def call(self, *words: str) -> Reply:
        """Send a command and give its reply. Raises `OSError`, `EOFError`, or `ValueError` for an error reply."""
        encoded = [word.encode() for word in words]
        parts = [b"*%d\r\n" % len(encoded), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)]
        self._socket.sendall(b"".join(parts))
        return self._reply()

    def _reply(self) -> Reply:
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("EOF")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if int(rest) < 0 else self._replies.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self._reply() for _ in range(int(rest))]
        raise ValueError(line.decode())


class Load:
    """The commands and what became of them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.done: list[float] = []
        self.number = 0
        self.lost = 0
        self.error = ""

    def turn(self) -> None:
        """Set the next value, read it and an older one, and count."""
        number = self.number = self.number + 1
        try:
            if self._redis.call("SET", f"value:{number}", _value(number)) != b"OK":
                self.error = f"SET {number} was not taken"
            for key in (number, number // 2 + 1):
                if self._redis.call("GET", f"value:{key}") != _value(key).encode():
                    self.lost += 1
            if (counted := self._redis.call("INCR", "count")) != number:
                self.error = f"INCR {number} gave {counted!r}"
        except (OSError, EOFError, ValueError) as error:
            code = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else ""
            self.error = code or str(error)
        else:
            self.done.append(time.monotonic())

    def read_all(self) -> None:
        """Read every value again."""
        for start in range(1, self.number + 1, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, self.number + 1))
            values = self._redis.call("MGET", *(f"value:{number}" for number in numbers))
            assert isinstance(values, list)
            self.lost += sum(value != _value(number).encode() for number, value in zip(numbers, values, strict=True))

    def report(self, *, brief: bool = False) -> str:
        """Say how it went so far; brief: without the moments of all that was done before the last turn."""
        done = self.done[-1:] if brief else self.done
        return json.dumps({"error": self.error, "number": self.number, "lost": self.lost, "done": done})


def _value(number: int) -> str:
    return f"{number:0{VALUE_BYTES}d}"


def main() -> None:
    """Load until told to finish."""
    load = Load(Redis(sys.argv[1], int(sys.argv[2])))
    print("connected", flush=True)
    while True:
        if not load.error:
            load.turn()
        if select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
            command = sys.stdin.readline()
            if command.startswith("report"):
                print(load.report(), flush=True)
                continue
            if command.startswith("brief"):
                print(load.report(brief=True), flush=True)
                continue
            if not load.error:
                load.read_all()
            print(load.report(), flush=True)
            return


if __name__ == "__main__":
    main()
