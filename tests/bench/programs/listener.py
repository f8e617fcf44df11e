"""The outside view of the benchmark: stamps the workload's ticks with the kernel's clock, and keeps its connection.

Run on the client as `listener.py UDP_PORT TCP_PORT`. Each line on standard input is answered with one JSON object:
`mark` forgets what came so far, `gaps` tells the longest silences since, `crc` asks the workload for the checksum of
its memory. Ends with its standard input.
"""

import itertools
import json
import selectors
import socket
import struct
import sys
import time

SO_TIMESTAMPNS = getattr(socket, "SO_TIMESTAMPNS", 35)  # asm-generic/socket.h; Python has no name for it
TIMESPEC = struct.Struct("@qq")
NUMBER = struct.Struct("!Q")
BUFFER_BYTES = 4 << 20


class Series:
    """Arrivals of one kind: (time in ns since 1970, number)."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[int, int]] = []

    def longest(self) -> dict[str, int]:
        """The longest silence between two arrivals."""
        pairs = itertools.pairwise(self.arrivals)
        before, after = max(pairs, key=lambda pair: pair[1][0] - pair[0][0], default=((0, 0), (0, 0)))
        return {
            "gap_ns": after[0] - before[0],
            "last_before_ns": before[0],
            "first_after_ns": after[0],
            "missing": max(0, after[1] - before[1] - 1),
            "arrivals": len(self.arrivals),
            "latest_ns": self.arrivals[-1][0] if self.arrivals else 0,
        }


class Listener:
    """Owns the sockets; single-threaded."""

    def __init__(self, udp_port: int, tcp_port: int) -> None:
        self.ticks = Series()
        self.lines = Series()
        self.connections = 0
        self.failure = ""
        self.checksum: int | None = None
        self._rest = b""
        self._connection: socket.socket | None = None
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._udp.bind(("0.0.0.0", udp_port))
        self._udp.setblocking(False)
        self._listening = socket.create_server(("0.0.0.0", tcp_port))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._udp, selectors.EVENT_READ, self._take_ticks)
        self._selector.register(self._listening, selectors.EVENT_READ, self._accept)
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._command)

    def run(self) -> None:
        """Serve until standard input ends."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _take_ticks(self) -> None:
        while True:
            try:
                data, ancillary, _, _ = self._udp.recvmsg(64, 64)
            except BlockingIOError:
                return
            seconds, nanoseconds = TIMESPEC.unpack(ancillary[0][2])
            self.ticks.arrivals.append((seconds * 1_000_000_000 + nanoseconds, NUMBER.unpack(data)[0]))

    def _accept(self) -> None:
        self._connection, _ = self._listening.accept()
        self._rest = b""
        self.failure = ""
        self.connections += 1
        self._selector.register(self._connection, selectors.EVENT_READ, self._take_lines)

    def _take_lines(self) -> None:
        assert self._connection is not None
        try:
            data = self._connection.recv(65536)
            reason = "" if data else "the connection was closed"
        except OSError as error:
            data, reason = b"", str(error)
        if reason:
            self.failure = reason
            self._selector.unregister(self._connection)
            self._connection.close()
            self._connection = None
            return
        now_ns = time.time_ns()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"crc "):
                self.checksum = int(line[4:])
            else:
                self.lines.arrivals.append((now_ns, int(line)))

    def _command(self) -> None:
        word = sys.stdin.readline().strip()
        if not word:
            sys.exit()
        if word == "mark":
            # The latest arrival stays: a silence may have begun already.
            for series in (self.ticks, self.lines):
                del series.arrivals[:-1]
        elif word == "crc" and self._connection is not None:
            self.checksum = None
            self._connection.sendall(b"crc\n")
        answer = {
            "udp": self.ticks.longest(),
            "tcp": self.lines.longest(),
            "connections": self.connections,
            "failure": self.failure,
            "checksum": self.checksum,
        }
        print(json.dumps(answer), flush=True)


Listener(int(sys.argv[1]), int(sys.argv[2])).run()
