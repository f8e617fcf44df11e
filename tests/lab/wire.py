"""What a capture on the client has seen: resets, who claims an address, and how long an address was silent.

The program that captures is programs/capture.py.
"""

from __future__ import annotations

from collections import defaultdict
from types import TracebackType

from phaul.lab.host import Host

from .witness import PYTHON, wait_until

DEVICE = "eth0"
FILE = "/tmp/capture"
# RFC 5227: who announces an address, and who answers for it, are the same for as long as nobody moves.
OVERLAP_SECONDS = 0.005


class Capture:
    """A capture on the client. Owns its process until the end of the `with`."""

    def __init__(self, client: Host, *addresses: str) -> None:
        self._client = client
        self._file = client.path(FILE)
        self._file.unlink(missing_ok=True)
        argv = ["python3", "-m", "witness.capture", DEVICE, FILE, *addresses]
        self._pid = client.spawn(argv, env=PYTHON)
        wait_until(self._file.exists, "the capture does not come up")

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.kill(self._pid)
        self._client.wait_ended(self._pid)
        self._file.unlink(missing_ok=True)

    def resets(self) -> list[str]:
        """Give the TCP resets that were seen, in either direction."""
        return [line for line in self._lines() if line.startswith("rst ")]

    def goodbyes(self, address: str) -> set[str]:
        """Give the MACs from which the ends of connections of an address came."""
        return {line.split()[3] for line in self._lines() if line.startswith(f"fin {address} ")}

    def claimants(self, address: str) -> set[str]:
        """Give the MACs that have claimed an address."""
        return {line.split()[2] for line in self._lines() if line.startswith(f"claim {address} ")}

    def rivals(self) -> list[str]:
        """Say where two claimed an address at once: one that had lost it to another spoke up again afterwards.

        An address that moves back and forth changes its MAC each time; who comes back is told apart from who never
        left by the time in between.
        """
        turns: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for line in self._lines():
            if line.startswith("claim "):
                _, address, mac, at_ns = line.split()
                turns[address].append((mac, int(at_ns) / 1e9))
        found = []
        for address, claims in turns.items():
            for (first, _), (second, from_), (third, to) in zip(claims, claims[1:], claims[2:], strict=False):
                if first == third != second and to - from_ < OVERLAP_SECONDS:
                    found.append(f"{address} was claimed by {first}, {second} and {first} within {to - from_:.4f} s")
        return found

    def first_after(self, address: str, moment: float) -> float:
        """Say when an address broke the silence in which it was at a moment, on the monotonic clock.

        Raises `AssertionError` where it was not silent then.
        """
        gaps = [line.split()[2:] for line in self._lines() if line.startswith(f"gap {address} ")]
        ends = [int(end) / 1e9 for begin, end in gaps if int(begin) / 1e9 <= moment <= int(end) / 1e9]
        assert ends, f"{address} was not silent"
        return ends[0]

    def _lines(self) -> list[str]:
        return self._file.read_text().splitlines()
