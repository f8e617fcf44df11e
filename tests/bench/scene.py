"""Where the benchmark takes place: a lab, a helper on each host, the workload, and the client who watches it.

Used by `tests.bench.__main__` and by the two ways of moving, `by_phaul` and `by_hand`. Measures nothing itself.
"""

from __future__ import annotations

import json
import mmap
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from phaul.lab import network
from phaul.lab.cluster import Lab
from phaul.lab.host import Host
from phaul.system.memory import available_bytes
from phaul.units import MIB

ADDRESS = network.floating_address4(0)
PREFIX = f"{ADDRESS}/{network.NETWORK4.prefixlen}"
UDP_PORT = 9001
TCP_PORT = 9002
PROGRAMS = Path(__file__).with_name("programs")
SETTLE_SECONDS = 0.4  # of ticking on the destination before the gaps are asked for
START_DEADLINE_SECONDS = 120.0  # filling a gigabyte with random bytes takes seconds
POLL_SECONDS = 0.02


class BenchError(Exception):
    """The benchmark cannot be trusted or cannot go on."""


@dataclass(frozen=True, slots=True)
class Silence:
    """The longest time without a tick, as the client's kernel saw it. Times in nanoseconds since 1970."""

    gap_ns: int
    last_before_ns: int
    first_after_ns: int


class Conversation:
    """A program on a host that answers each line with a JSON object. Owns its process."""

    def __init__(self, host: Host, program: str, *arguments: str) -> None:
        path = f"/root/{program}"
        host.path(path).write_text((PROGRAMS / program).read_text())
        self.host = host
        self._process = host.popen(["python3", path, *arguments], stdin=subprocess.PIPE, stderr=None)

    def ask(self, line: str) -> Any:
        """Send a line and give the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise BenchError(f"A program of the benchmark on host {self.host.name} has ended.")
        return json.loads(answer)

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Helper(Conversation):
    """Runs commands on a host without the cost of entering it."""

    def __init__(self, host: Host) -> None:
        super().__init__(host, "helper.py")
        self._next_id = 0

    def start(self, argv: Sequence[str], *, ready: bool = False) -> str:
        """Start a command; with `ready` wait for what it writes to the descriptor READY_FD of its `argv`."""
        return self._begin({"op": "start", "argv": list(argv), "ready": ready})

    def receive(self, directory: str, port: int) -> str:
        """Listen for one tar stream and unpack it."""
        return self._begin({"op": "receive", "directory": directory, "port": port})

    def send(self, directory: str, host: str, port: int) -> str:
        """Send a directory as a tar stream."""
        return self._begin({"op": "send", "directory": directory, "host": host, "port": port})

    def wait(self, job: str, what: str) -> dict[str, Any]:
        """Wait for a job's end; one that failed ends the benchmark."""
        answer: dict[str, Any] = self.ask(json.dumps({"op": "wait", "id": job}))
        if answer.get("status") != 0:
            raise BenchError(f"{what} on host {self.host.name} failed: {answer.get('output', '')}")
        return answer

    def run(self, argv: Sequence[str], what: str) -> dict[str, Any]:
        """Run a command to its end."""
        return self.wait(self.start(argv), what)

    def _begin(self, request: dict[str, object]) -> str:
        self._next_id += 1
        job = str(self._next_id)
        self.ask(json.dumps({**request, "id": job}))
        return job


class Scene:
    """A lab with its helpers and the watching client. Owns them; `workload` starts and ends one workload."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.helpers = {name: Helper(host) for name, host in lab.hosts.items()}
        self._listener = Conversation(lab.client, "listener.py", str(UDP_PORT), str(TCP_PORT))
        self.connections = 0

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for conversation in (*self.helpers.values(), self._listener):
                stack.callback(conversation.close)

    @contextmanager
    def workload(
        self, mib: int, place: str = "a", content: str = "random", pages: int = 0, tick_ms: int = 1
    ) -> Iterator[int]:
        """Run a workload on a host, with the floating address; give its PID, which it keeps wherever it goes.

        It writes so many `pages` a second, and ticks every `tick_ms`.
        """
        host = self.lab.host(place)
        program = "workload.py"
        for member in self.lab.hosts.values():
            member.path(f"/root/{program}").write_text((PROGRAMS / program).read_text())
        host.exec(["ip", "address", "add", PREFIX, "dev", network.INTERFACE])
        argv = ["python3", f"/root/{program}", str(mib), ADDRESS, self.lab.client.ip4, str(UDP_PORT), str(TCP_PORT)]
        argv += [content, str(pages), str(tick_ms)]
        pid = host.spawn(argv, log="/dev/null")
        try:
            self.connections += 1
            deadline = time.monotonic() + START_DEADLINE_SECONDS
            while self._ask("mark")["connections"] != self.connections:
                if not host.running(pid) or time.monotonic() > deadline:
                    raise BenchError("The workload did not start.")
                time.sleep(POLL_SECONDS)
            yield pid
        finally:
            for member in self.lab.hosts.values():
                if member.alive:
                    member.kill(pid)
                    member.wait_ended(pid)
                    member.exec(["ip", "address", "del", PREFIX, "dev", network.INTERFACE], check=False)

    def mark(self) -> None:
        """Forget the silences so far."""
        self._ask("mark")

    def silence(self) -> Silence:
        """Wait until the workload has ticked for a while and give the longest silence since `mark`."""
        time.sleep(SETTLE_SECONDS)
        answer = self._ask("gaps")
        self._check_connection(answer)
        udp = answer["udp"]
        if udp["latest_ns"] - udp["first_after_ns"] < SETTLE_SECONDS * 1e9 / 4:
            raise BenchError("The workload does not tick any more.")
        return Silence(udp["gap_ns"], udp["last_before_ns"], udp["first_after_ns"])

    def checksum(self) -> int:
        """The checksum of the workload's memory, asked over its connection."""
        self._ask("crc")
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while True:
            answer = self._ask("gaps")
            self._check_connection(answer)
            if answer["checksum"] is not None:
                return int(answer["checksum"])
            if time.monotonic() > deadline:
                raise BenchError("The workload does not answer over its connection.")
            time.sleep(POLL_SECONDS)

    def sent_bytes(self, place: str) -> int:
        """What a host has sent so far, by its device's counter."""
        return int(self.lab.host(place).path(f"/sys/class/net/{network.INTERFACE}/statistics/tx_bytes").read_text())

    def _ask(self, word: str) -> Any:
        return self._listener.ask(word)

    def _check_connection(self, answer: Any) -> None:
        if answer["failure"] or answer["connections"] != self.connections:
            raise BenchError(f"The workload's connection did not survive: {answer['failure'] or 'it came again'}.")


def warm_memory(mib: int) -> None:
    """
    Touch this much memory once and give it back: the first touch of a virtual machine's fresh memory is slow.

    At most half of what is available is touched, so that nothing is ever swapped or killed for it.
    """
    with mmap.mmap(
        -1, min(mib * MIB, available_bytes() // 2), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    ):
        pass
