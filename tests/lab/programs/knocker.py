"""Clients that come and go: `knocker ADDRESS PORT THREADS` connects again and again, each time for one line.

Runs on the client. Hangs up when it has its answer, and with a fourth argument waits for the server to do so; what the
server says before must arrive whole. Ends when standard input is
closed, and prints one line of JSON: when each was served, and what failed.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import threading
import time

# Longer than the first retransmissions of a SYN, which come after 1 and 3 s.
PATIENCE_SECONDS = 6.0
PAUSE_SECONDS = 0.002


class Knocker(threading.Thread):
    """One of them."""

    def __init__(self, address: str, port: int, number: int, stop: threading.Event, patient: bool) -> None:
        super().__init__(daemon=True)
        self._where = (address, port)
        self._number = number
        self._stop_knocking = stop
        self._patient = patient
        self.served: list[float] = []
        self.failures: list[tuple[float, str]] = []

    def run(self) -> None:
        """Knock until told to stop."""
        turn = 0
        while not self._stop_knocking.is_set():
            turn += 1
            started = time.monotonic()
            try:
                answer = self._knock(f"{self._number}:{turn}\n".encode())
            except OSError as error:
                code = errno.errorcode.get(error.errno or 0, str(error))
                self.failures.append((started, code))
            else:
                if answer:
                    self.failures.append((started, answer))
                else:
                    self.served.append(time.monotonic())
            time.sleep(PAUSE_SECONDS)

    def _knock(self, line: bytes) -> str:
        with socket.create_connection(self._where, timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(line)
            received = b""
            while (self._patient or len(received) < len(line)) and (data := connection.recv(1000)):
                received += data
        return "" if received == line else f"{line!r} was answered by {received!r}"


def main() -> None:
    """Knock until standard input ends."""
    stop = threading.Event()
    knockers = [
        Knocker(sys.argv[1], int(sys.argv[2]), number, stop, len(sys.argv) > 4) for number in range(int(sys.argv[3]))
    ]
    for knocker in knockers:
        knocker.start()
    print("knocking", flush=True)
    sys.stdin.read()
    stop.set()
    for knocker in knockers:
        knocker.join(PATIENCE_SECONDS * 2)
    served = sorted(moment for knocker in knockers for moment in knocker.served)
    failures = sorted(failure for knocker in knockers for failure in knocker.failures)
    hanging = sum(knocker.is_alive() for knocker in knockers)
    print(json.dumps({"served": served, "failures": failures, "hanging": hanging}), flush=True)


if __name__ == "__main__":
    main()
