"""The demo between two hosts that `provision.sh` has made ready: run on the client, as root, with phaul's own Python.

A server on host a keeps its address, 10.77.0.100; this program is its client. The server moves to b and back, by
`phaul migrate` on the host where it is. Exits 0 where the one connection lives to the end and nothing of it is lost.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

from phaul.install.ssh import SshHost
from phaul.install.target import Login, parse_target

ADDRESS, PORT, PREFIX = "10.77.0.100", 5000, 24
ANSWER_SECONDS = 300.0  # under emulation a move takes long
PAUSE_SECONDS = 0.05
PID_FILE = "/run/demo-server.pid"
# Counts what it is sent, and answers with the count: whatever is lost or comes twice shows.
SERVER = f"""
import os, socket
listener = socket.create_server(("{ADDRESS}", {PORT}))
with open("{PID_FILE}", "w") as file:
    file.write(str(os.getpid()))
connection, _ = listener.accept()
count = 0
while connection.recv(1):
    count += 1
    connection.sendall(count.to_bytes(4, "big"))
"""
START = f"""set -e
device=$(ip -o -4 address show | awk '/ 10\\.77\\.0\\./ {{ print $2; exit }}')
ip address replace {ADDRESS}/{PREFIX} dev "$device"
rm -f {PID_FILE}
systemd-run --quiet --scope --collect --slice=workloads.slice -- \\
    setsid --fork python3 -c '{SERVER}' </dev/null >/dev/null 2>&1
for attempt in $(seq 300); do
    [ -s {PID_FILE} ] && exec cat {PID_FILE}
    sleep 0.2
done
echo "the server does not start" >&2
exit 1
"""
STOP = f"""kill $(cat {PID_FILE})
device=$(ip -o address show to {ADDRESS} | awk '{{ print $2 }}')
ip address del {ADDRESS}/{PREFIX} dev "$device"
"""


class Client:
    """One connection, in a thread: a byte at a time, and the count that must come back."""

    def __init__(self) -> None:
        self.count = 0
        self.longest_gap_seconds = 0.0
        self.error = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def wait_more(self) -> None:
        """Wait until it has had another ten answers."""
        wanted, deadline = self.count + 10, time.monotonic() + ANSWER_SECONDS
        while self.count < wanted and not self.error:
            if time.monotonic() > deadline:
                self.error = "no answer comes any more"
            time.sleep(PAUSE_SECONDS)

    def close(self) -> None:
        """End it."""
        self._over.set()
        self._thread.join(ANSWER_SECONDS)

    def _talk(self) -> None:
        try:
            with _connected() as connection:
                connection.settimeout(ANSWER_SECONDS)
                while not self._over.is_set():
                    asked = time.monotonic()
                    connection.sendall(b".")
                    answer = b""
                    while len(answer) < 4:
                        more = connection.recv(4 - len(answer))
                        if not more:
                            raise ConnectionError("the server has closed the connection")
                        answer += more
                    self.count += 1
                    if int.from_bytes(answer, "big") != self.count:
                        raise ValueError(f"answer {int.from_bytes(answer, 'big')} to number {self.count}")
                    self.longest_gap_seconds = max(self.longest_gap_seconds, time.monotonic() - asked)
                    time.sleep(PAUSE_SECONDS)
        except (OSError, ValueError) as error:
            self.error = str(error) or type(error).__name__


def _connected() -> socket.socket:
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            return socket.create_connection((ADDRESS, PORT), 5)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def main() -> int:
    """Move it there and back."""
    login = Login()
    with SshHost(parse_target("root@a"), login) as a, SshHost(parse_target("root@b"), login) as b:
        pid = int(a.check(START, "the server could not be started"))
        client = Client()
        client.wait_more()
        print(f"a server runs on a as PID {pid}; a client is connected to {ADDRESS}")
        for source, to in ((a, "b"), (b, "a")):
            command = f"phaul migrate {pid} --to {to} --address {ADDRESS}/{PREFIX}"
            print(f"root@{source.target.host}# {command}", flush=True)
            print(source.check(command, "it was not moved"))
            client.wait_more()
        client.close()
        a.run(STOP)
    held = not client.error
    verdict = "held to the end" if held else f"broke: {client.error}"
    print(f"one connection {verdict}; {client.count} answers, the longest gap {client.longest_gap_seconds:.1f} s")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
