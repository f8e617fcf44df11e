"""What crosses a host's wire, searched for marks: the judge of whether anything is in the clear."""

from __future__ import annotations

import json
import subprocess

from phaul.lab.host import Host

ENDED_SECONDS = 120

# The marks are handed over as hex: no command line of a test holds them.
CAPTURE = """
import json, select, socket, sys
marks = [bytes.fromhex(each) for each in sys.argv[1:]]
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
packets.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
packets.bind(("eth0", 0))
print("ready", flush=True)
seen, found = 0, [0] * len(marks)
while True:
    ready = select.select([packets, sys.stdin], [], [])[0]
    if packets in ready:
        frame = packets.recv(1 << 17)
        seen += len(frame)
        found = [count + (mark in frame) for count, mark in zip(found, marks)]
    elif sys.stdin in ready:
        print(json.dumps([seen, *found]), flush=True)
        break
"""


class Capture:
    """Everything that a host's eth0 carries, from the beginning to `stop`."""

    def __init__(self, host: Host, *marks: bytes) -> None:
        argv = ["python3", "-c", CAPTURE, *(mark.hex() for mark in marks)]
        self._process = host.popen(argv, stdin=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> tuple[int, list[int]]:
        """Bytes seen, and in how many packets each mark was."""
        out, _ = self._process.communicate("\n", timeout=ENDED_SECONDS)
        seen, *found = json.loads(out)
        return seen, found
