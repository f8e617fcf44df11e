"""A slow road to the client: every frame is late, some are lost. Stands in for `tc netem`, which not every kernel has.

`Road` takes the client's port off the lab's bridge and puts a process in between, which runs this module: it hands
frames on between two devices of the bridge's namespace, with the kernel's offload headers as they are.
"""

from __future__ import annotations

import heapq
import itertools
import random
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from phaul.lab.cluster import CLIENT, SWITCH, Lab
from phaul.lab.records import ProcessRecord

REPOSITORY = Path(__file__).parents[2]
NEAR, FAR = "road-near", "road-far"
ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23  # linux/if_packet.h
SO_RCVBUFFORCE = 33
BUFFER_BYTES = 8 << 20
FRAME_BYTES = 1 << 17


class Road:
    """The client's way to the hosts, within a `with`: `delay_seconds` each way, and `loss` of all frames gone."""

    def __init__(self, lab: Lab, delay_seconds: float, loss: float) -> None:
        record = ProcessRecord.read(lab.directory / f"{SWITCH}.process")
        assert record is not None
        self._enter = ["nsenter", "--target", str(record.pid), "--net", "--"]
        self._lines(
            [
                f"link add {NEAR} type veth peer name {FAR}",
                f"link set {NEAR} up",
                f"link set {FAR} master bridge up",
                f"link set {CLIENT} nomaster",
            ]
        )
        program = [sys.executable, "-m", "tests.lab.road", str(delay_seconds), str(loss)]
        self._process = subprocess.Popen(
            [*self._enter, *program], cwd=REPOSITORY, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"open\n"

    def __enter__(self) -> Road:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._lines([f"link del {NEAR}", f"link set {CLIENT} master bridge"])

    def _lines(self, lines: list[str]) -> None:
        subprocess.run([*self._enter, "ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


def main() -> None:
    """Hand frames on until killed."""
    delay_seconds, loss = float(sys.argv[1]), float(sys.argv[2])
    draw = random.Random(1)
    ends = [_open(CLIENT), _open(NEAR)]
    selector = selectors.DefaultSelector()
    for end, other in (ends, ends[::-1]):
        selector.register(end, selectors.EVENT_READ, other)
    waiting: list[tuple[float, int, socket.socket, bytes]] = []
    number = itertools.count()
    print("open", flush=True)
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, end, frame = heapq.heappop(waiting)
            try:
                end.send(frame)
            except OSError:
                pass  # its queue is full: lost
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for key, _ in selector.select(patience):
            while True:
                try:
                    frame = key.fileobj.recv(FRAME_BYTES)  # type: ignore[union-attr]
                except BlockingIOError:
                    break
                if draw.random() >= loss:
                    heapq.heappush(waiting, (time.monotonic() + delay_seconds, next(number), key.data, frame))


def _open(device: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)  # frames larger than the MTU and without checksums stay so
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    end.bind((device, ETH_P_ALL))
    return end


if __name__ == "__main__":
    main()
