"""One host of test_network.py, seen from inside: obeys lines of JSON on stdin, in the network namespace it was put in.

Started by `network_hosts.Host` through nsenter, never in the namespace of the machine. Each line is
``[name, argument, ...]``; the answer is a line with ``{"result": ...}`` or ``{"error": class, "message": ...}``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from phaul.migration.facts import AddressFacts, ConnectionFacts
from phaul.network import addresses
from phaul.network.identity import HostNetwork

ETH_P_ALL = 3
CONNECT_SECONDS = 1.0  # longer than an ARP or NDP exchange, shorter than its first retry of three


class Worker:
    """The verbs. Owns every socket that a test has opened here."""

    def __init__(self) -> None:
        self._network = HostNetwork()
        self._listeners: list[socket.socket] = []
        self._connections: list[socket.socket] = []
        self._tap: socket.socket | None = None

    def network(self, method: str, *arguments: Any) -> Any:
        """Call `HostNetwork`; addresses travel as lists, and come back so."""
        asked = [_facts(each) if isinstance(each, list) else each for each in arguments]

        async def call() -> tuple[Any, float]:
            start = time.perf_counter()
            result = await getattr(self._network, method)(*asked)
            return result, time.perf_counter() - start

        result, seconds = asyncio.run(call())
        return {"value": [str(each) for each in result] if result else [], "seconds": seconds}

    def deny_settings(self) -> None:
        """Have no sysctl be found from here on, as in a container whose /proc/sys is masked."""
        addresses.SYSCTL = Path("/nonexistent")

    def listen(self, address: str, port: int) -> None:
        """Listen, whether or not the address is here yet."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::" if ":" in address else "0.0.0.0", port))
        listener.listen(8)
        self._listeners.append(listener)

    def accept(self) -> int:
        """Accept a connection; its number is the answer."""
        self._listeners[-1].settimeout(CONNECT_SECONDS)
        connection, _ = self._listeners[-1].accept()
        connection.settimeout(CONNECT_SECONDS)
        self._connections.append(connection)
        return len(self._connections) - 1

    def probe(self, address: str, port: int) -> str:
        """Try to connect: "connected", "refused" (a RST came) or "silence"."""
        try:
            with socket.create_connection((address, port), CONNECT_SECONDS):
                return "connected"
        except ConnectionRefusedError:
            return "refused"
        except OSError as error:  # a timeout, or "no route to host" when nobody answered ARP
            return "silence" if isinstance(error, TimeoutError) or error.errno == 113 else repr(error)

    def connect(self, address: str, port: int) -> int:
        """Connect and keep it; its number is the answer."""
        connection = socket.create_connection((address, port), CONNECT_SECONDS)
        self._connections.append(connection)
        return len(self._connections) - 1

    def send(self, number: int, text: str) -> None:
        """Send on a kept connection."""
        self._connections[number].sendall(text.encode())

    def receive(self, number: int, seconds: float) -> str:
        """Receive what comes on a kept connection, "" after that time."""
        self._connections[number].settimeout(seconds)
        try:
            return self._connections[number].recv(4096).decode() or "closed"
        except TimeoutError:
            return ""

    def tap(self, device: str) -> None:
        """Start to keep every frame of a device."""
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._tap.bind((device, ETH_P_ALL))

    def taped(self) -> list[str]:
        """Every frame that *came in* since `tap`, in hex; stops it."""
        assert self._tap is not None
        frames: list[str] = []
        self._tap.setblocking(False)
        while True:
            try:
                frame, (_, _, kind, _, _) = self._tap.recvfrom(65536)
            except BlockingIOError:
                break
            if kind != socket.PACKET_OUTGOING:
                frames.append(frame.hex())
        self._tap.close()
        self._tap = None
        return frames


def _facts(values: list[Any]) -> Sequence[object]:
    return [AddressFacts(*each) if len(each) == 3 else ConnectionFacts(*each) for each in values]


def main() -> None:
    """Obey until stdin ends."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    worker = Worker()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        verb: Callable[..., Any] = getattr(worker, name)
        try:
            answer = {"result": verb(*arguments)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the test has to hear of it
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
