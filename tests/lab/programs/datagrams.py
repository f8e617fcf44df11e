"""Numbered datagrams: a server that answers each with what it has counted, and a client that numbers and judges.

`datagrams CLIENT TICK_PORT ADDRESS PORT PEER PEER_PORT...` is the server, on a host: one socket for each four words,
bound to ADDRESS and connected to the PEER, or with a PEER_PORT of 0 to nobody. `datagrams client ADDRESS PORT
OWN_PORT...` runs on the client: one socket for each three words. Says `report` to each line, and ends with its input.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import sys
import time

from .ticker import Ticker, new_instance

TICK_SECONDS = 0.005
SEND_SECONDS = 0.004
READ_BYTES = 1000


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Counter:
    """A socket of the server. A copy of it goes on counting; a socket that was made anew has another name."""

    def __init__(self, address: str, port: int, peer: str, peer_port: int) -> None:
        self.socket = socket.socket(family_of(address), socket.SOCK_DGRAM)
        self.socket.bind((address, port))
        if peer_port:
            self.socket.connect((peer, peer_port))
        self.socket.setblocking(False)
        self._connected = bool(peer_port)
        self._name = new_instance()
        self._count = 0

    def answer(self) -> None:
        """Answer what has come: its number, the name of this socket, and how many have come so far."""
        while True:
            try:
                number, sender = self.socket.recvfrom(READ_BYTES)
            except BlockingIOError:
                return
            self._count += 1
            words = f"{number.decode()} {self._name} {self._count}".encode()
            if self._connected:
                self.socket.send(words)
            else:
                self.socket.sendto(words, sender)


def serve(words: list[str]) -> None:
    """Serve for ever. Whatever goes wrong ends it, which its ticks show."""
    ticker = Ticker(words[0], int(words[1]), new_instance())
    selector = selectors.DefaultSelector()
    for at in range(2, len(words), 4):
        address, port, peer, peer_port = words[at : at + 4]
        counter = Counter(address, int(port), peer, int(peer_port))
        selector.register(counter.socket, selectors.EVENT_READ, counter)
    tick_at = time.monotonic()
    while True:
        if (now := time.monotonic()) >= tick_at:
            tick_at = max(tick_at + TICK_SECONDS, now)
            ticker.tick()
        for key, _ in selector.select(max(0.0, tick_at - time.monotonic())):
            key.data.answer()


class Flow:
    """A socket of the client, and what it has sent and heard."""

    def __init__(self, address: str, port: int, own_port: int) -> None:
        self.socket = socket.socket(family_of(address), socket.SOCK_DGRAM)
        self.socket.bind(("", own_port))
        self.socket.connect((address, port))
        self.socket.setblocking(False)
        self._sent: list[float] = []
        self._heard: dict[int, list[float]] = {}
        self._names: list[str] = []
        self._counts: list[int] = []
        self._errors: list[str] = []

    def send(self) -> None:
        """Send the next."""
        self._sent.append(time.monotonic())
        try:
            self.socket.send(str(len(self._sent)).encode())
        except OSError as error:
            self._errors.append(errno.errorcode[error.errno or 0])

    def receive(self) -> None:
        """Take in what has come."""
        try:
            number, name, count = self.socket.recv(READ_BYTES).split()
        except OSError as error:
            self._errors.append(errno.errorcode[error.errno or 0])
            return
        self._heard.setdefault(int(number), []).append(time.monotonic())
        self._names.append(name.decode())
        self._counts.append(int(count))

    def report(self) -> dict[str, object]:
        """Say what became of each."""
        return {
            "sent": len(self._sent),
            "heard": len(self._heard),
            "unanswered": [at for number, at in enumerate(self._sent, start=1) if number not in self._heard],
            "doubled": [number for number, times in self._heard.items() if len(times) > 1],
            "names": sorted(set(self._names)),
            "counts": self._counts,
            "errors": self._errors,
        }


def ask(words: list[str]) -> None:
    """Send until standard input ends."""
    flows = [Flow(words[at], int(words[at + 1]), int(words[at + 2])) for at in range(0, len(words), 3)]
    selector = selectors.DefaultSelector()
    for flow in flows:
        selector.register(flow.socket, selectors.EVENT_READ, flow)
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    print("sending", flush=True)
    send_at = time.monotonic()
    while True:
        if (now := time.monotonic()) >= send_at:
            send_at = max(send_at + SEND_SECONDS, now)
            for flow in flows:
                flow.send()
        for key, _ in selector.select(max(0.0, send_at - time.monotonic())):
            if key.data is not None:
                key.data.receive()
            elif sys.stdin.readline():
                print(json.dumps([flow.report() for flow in flows]), flush=True)
            else:
                return


if __name__ == "__main__":
    if sys.argv[1] == "client":
        ask(sys.argv[2:])
    else:
        serve(sys.argv[1:])
