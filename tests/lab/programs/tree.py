"""A tree of processes that talk to each other all the time: `tree.py CLIENT PORT PROCESSES DIRECTORY`.

Runs on a host. A numbered token goes round through pipes from each process to the next; whoever holds it checks that a
counter in memory shared by all stands at the token's number, and counts it up. Process 0 is the parent of the first
few, these of further ones. Each process also plays ping-pong with numbered messages with its parent: over a socket
pair, a Unix socket that has a path in DIRECTORY, or a TCP connection over loopback. Every process ticks; what it has
done and what was wrong stands in its ticks.
"""

from __future__ import annotations

import mmap
import os
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass, field

from .ticker import Ticker, new_instance

CHILDREN = 4  # of each process, as long as there are any left
NUMBER = struct.Struct("=Q")
TICK_SECONDS = 0.02
HOLD_SECONDS = 0.0005  # so that the token's way round does not take a whole processor


@dataclass
class Process:
    """What one process of the tree has."""

    index: int
    ticker: Ticker
    shared: mmap.mmap
    token_in: int
    token_out: int
    pings: list[socket.socket] = field(default_factory=list)  # to the children: asks
    pongs: list[socket.socket] = field(default_factory=list)  # to the parent: answers
    work: int = 0
    errors: int = 0

    def run(self) -> None:
        """Pass the token and play, for ever."""
        selector = selectors.DefaultSelector()
        selector.register(self.token_in, selectors.EVENT_READ, self._token)
        for connection in self.pongs:
            selector.register(connection, selectors.EVENT_READ, lambda c=connection: self._pong(c))
        expected = dict.fromkeys(self.pings, 1)
        for connection in self.pings:
            selector.register(connection, selectors.EVENT_READ, lambda c=connection: self._ping(c, expected))
            connection.sendall(NUMBER.pack(1))
        tick_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= tick_at:
                tick_at = now + TICK_SECONDS
                self.ticker.tick(self.work, self.errors)
            for key, _ in selector.select(max(0.0, tick_at - time.monotonic())):
                key.data()

    def _token(self) -> None:
        (token,) = NUMBER.unpack(os.read(self.token_in, NUMBER.size))
        (counter,) = NUMBER.unpack_from(self.shared)
        if counter != token:
            self._wrong(f"the token is {token}, the shared counter {counter}")
        NUMBER.pack_into(self.shared, 0, token + 1)
        self.work += 1
        time.sleep(HOLD_SECONDS)
        os.write(self.token_out, NUMBER.pack(token + 1))

    def _ping(self, connection: socket.socket, expected: dict[socket.socket, int]) -> None:
        (number,) = NUMBER.unpack(connection.recv(NUMBER.size))
        if number != expected[connection]:
            self._wrong(f"{number} came back for {expected[connection]}")
        expected[connection] = number + 1
        time.sleep(HOLD_SECONDS)
        connection.sendall(NUMBER.pack(number + 1))

    def _pong(self, connection: socket.socket) -> None:
        connection.sendall(connection.recv(NUMBER.size))

    def _wrong(self, what: str) -> None:
        self.errors += 1
        print(f"process {self.index}: {what}", flush=True)


def main() -> None:
    """Make the pipes and the memory, then the tree, and play."""
    client, port, count, directory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    instance = new_instance()
    shared = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    pipes = [os.pipe() for _ in range(count)]
    path = f"{directory}/tree.sock"
    named = socket.socket(socket.AF_UNIX)
    named.bind(path)
    named.listen(count)
    loopback = socket.create_server(("127.0.0.1", 0), backlog=count)
    index, pings, pongs = _grow(0, count, named, loopback)
    process = Process(
        index,
        Ticker(client, port, instance, index),
        shared,
        pipes[index][0],
        pipes[(index + 1) % count][1],
        pings,
        pongs,
    )
    if index == 0:
        os.write(pipes[0][1], NUMBER.pack(0))
    process.run()


def _grow(
    index: int, count: int, named: socket.socket, loopback: socket.socket
) -> tuple[int, list[socket.socket], list[socket.socket]]:
    """Fork the children of a process; returns in every one with its index and its connections."""
    pings: list[socket.socket] = []
    pongs: list[socket.socket] = []
    child = index * CHILDREN + 1
    while child < min(index * CHILDREN + 1 + CHILDREN, count):
        kind = child % 3
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            if kind:
                theirs.close()
                there = named if kind == 1 else loopback
                theirs = socket.socket(there.family)
                theirs.connect(there.getsockname())
            index, pings, pongs = child, [], [theirs]
            child = index * CHILDREN + 1
            continue
        theirs.close()
        if kind:
            ours.close()
            ours = (named if kind == 1 else loopback).accept()[0]
        pings.append(ours)
        child += 1
    return index, pings, pongs


if __name__ == "__main__":
    main()
