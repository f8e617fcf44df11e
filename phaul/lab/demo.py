"""The demonstration: a Redis with a busy client is moved from host a to host b and back, and then judged.

Called by `phaul.cli.demo`, which renders. Nothing here decides how a migration goes: it is started with `phaul
migrate`, as a person would, and judged from outside: by the client, and by what is left on the hosts.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phaul.errors import LabError
from phaul.lab import commands, network, recipe, traces
from phaul.lab.cluster import Lab
from phaul.lab.host import Host

LAB_NAME = "demo"
DEFAULT_MIB = 256
PORT = 6379
ADDRESS = network.floating_address4(0)
PREFIX = f"{ADDRESS}/{network.NETWORK4.prefixlen}"
CONTROL = "/run/redis-client.sock"
CLIENT_LOG = "/var/log/redis-client.log"
CLIENT_PROGRAM = f"{recipe.SOURCE}/phaul/lab/programs/redis_client.py"
BETWEEN_SECONDS = 1.0  # of operations before the first move, and after each
START_DEADLINE_SECONDS = 10.0
ANSWER_DEADLINE_SECONDS = 120.0  # filling and reading back a few gigabytes
POLL_SECONDS = 0.01

Runner = Callable[[Host, Sequence[str]], int]  # runs a command on a host, for everybody to see, and gives its status


@dataclass(frozen=True, slots=True)
class Leg:
    """One move. `report` is phaul's, as `phaul status --json` gives it; times of the client are its own."""

    source: str
    destination: str
    start_ns: int
    end_ns: int
    report: dict[str, Any]
    operations: int  # of the client, while it lasted
    longest_gap_us: float  # between two operations of the client
    leftovers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict."""

    name: str
    holds: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it went. It holds when every check does."""

    legs: tuple[Leg, ...]
    checks: tuple[Check, ...]
    before: int  # operations
    during: int
    after: int  # between the moves, and after the last
    numbers: int
    blocks: int
    lost: int
    resets: int

    @property
    def holds(self) -> bool:
        """Whether everything is as it was promised."""
        return all(check.holds for check in self.checks)


class MoveFailedError(Exception):
    """`phaul migrate` did not end well, and has told why. `status` is its exit status."""

    def __init__(self, source: str, destination: str, status: int) -> None:
        super().__init__(f"moving from {source} to {destination} ended with status {status}")
        self.source = source
        self.destination = destination
        self.status = status


class Client:
    """The client's control socket. Owns the connection to it, not the client."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_DEADLINE_SECONDS)
        self._answers = self._socket.makefile("r")

    def connect(self, pid: int) -> None:
        """Wait for the client to serve."""
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while True:
            try:
                self._socket.connect(str(self._host.path(CONTROL)))
                return
            except OSError as error:
                if time.monotonic() > deadline or not self._host.running(pid):
                    raise LabError(
                        "The client of the demonstration did not start.",
                        detail=commands.tail(self._host.path(CLIENT_LOG)),
                    ) from error
                time.sleep(POLL_SECONDS)

    def ask(self, do: str, **more: object) -> dict[str, Any]:
        """Send a request and give the answer."""
        try:
            self._socket.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
            line = self._answers.readline()
        except OSError as error:
            raise LabError("The client of the demonstration does not answer.") from error
        if not line:
            raise LabError(
                "The client of the demonstration has ended.", detail=commands.tail(self._host.path(CLIENT_LOG))
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Close the control connection; the client goes on."""
        self._answers.close()
        self._socket.close()


@dataclass(slots=True)
class Demo:
    """One demonstration in a lab that is up. `prepare`, then `move` as often as wanted, then `judge`.

    Owns nothing but a control connection: the lab's end is the end of Redis and of the client.
    """

    lab: Lab
    mib: int
    pid: int = 0
    _client: Client = field(init=False)
    _first: dict[str, Any] = field(init=False)
    _legs: list[Leg] = field(init=False, default_factory=list)

    def prepare(self, place: str = "a") -> None:
        """Start Redis with its address on a host, fill it, and let the client begin."""
        host = self.lab.host(place)
        host.exec(["ip", "address", "add", PREFIX, "dev", network.INTERFACE])
        # No snapshots: nothing but memory has to move. No log: a file that grows is there on one host only.
        settings = {"bind": ADDRESS, "port": str(PORT), "protected-mode": "no", "save": "", "appendonly": "no"}
        argv = ["redis-server", *(word for name, value in settings.items() for word in (f"--{name}", value))]
        self.pid = host.spawn(argv, log="/dev/null")
        self._await_redis(host)
        client = self.lab.client
        client_pid = client.spawn(["python3", CLIENT_PROGRAM, CONTROL, ADDRESS, str(PORT)], log=CLIENT_LOG)
        self._client = Client(client)
        self._client.connect(client_pid)
        self._ask("fill", mib=self.mib)
        self._first = self._ask("begin")
        time.sleep(BETWEEN_SECONDS)

    def command(self, destination: str) -> list[str]:
        """What a person types to move Redis there."""
        return ["phaul", "migrate", str(self.pid), "--to", destination, "--address", PREFIX]

    def move(self, source: str, destination: str, run: Runner) -> Leg:
        """Move Redis, and look at what is left. Raises `MoveFailedError`."""
        host = self.lab.host(source)
        status = run(host, self.command(destination))
        if status != 0:
            raise MoveFailedError(source, destination, status)
        lines = host.exec(["phaul", "status", "--json"]).stdout.splitlines()
        # Newest first; this host may have been the destination of an earlier one.
        summary = next(json.loads(line) for line in lines if json.loads(line)["role"] == "source")
        start_ns, end_ns = summary["started_unix_us"] * 1000, summary["ended_unix_us"] * 1000
        time.sleep(BETWEEN_SECONDS)
        window = self._client.ask("window", start_ns=start_ns, end_ns=end_ns)
        leftovers = [f"{left} on {source}" for left in traces.left_on_source(host, self.pid, [ADDRESS])]
        there = self.lab.host(destination)
        leftovers += [f"{left} on {destination}" for left in traces.left_on_destination(there)]
        leg = Leg(
            source=source,
            destination=destination,
            start_ns=start_ns,
            end_ns=end_ns,
            report=summary["report"],
            operations=window["within"],
            longest_gap_us=window["longest_gap_ns"] / 1000,
            leftovers=tuple(leftovers),
        )
        self._legs.append(leg)
        return leg

    def judge(self) -> Verdict:
        """Read every value back and compare everything with how it began. After at least one move."""
        legs = tuple(self._legs)
        before = self._client.ask("window", start_ns=legs[0].start_ns, end_ns=legs[0].end_ns)["before"]
        last = self._client.ask("verify")
        during = sum(leg.operations for leg in legs)
        return Verdict(
            legs=legs,
            checks=checks(self.pid, self.lab.host(legs[-1].destination).running(self.pid), self._first, last, legs),
            before=before,
            during=during,
            after=last["operations"] - before - during,
            numbers=last["written"],
            blocks=last.get("blocks", 0),
            lost=lost_values(last),
            resets=last["resets"],
        )

    def go_on(self) -> None:
        """Let the client work on, for a person who plays on with the lab."""
        self._ask("begin")

    def close(self) -> None:
        """Leave the client to itself."""
        if hasattr(self, "_client"):
            self._client.close()

    def _ask(self, do: str, **more: object) -> dict[str, Any]:
        answer = self._client.ask(do, **more)
        if answer["failures"]:
            raise LabError("The client of the demonstration failed.", detail="\n".join(answer["failures"]))
        return answer

    def _await_redis(self, host: Host) -> None:
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        listening = f":{PORT:04X}"
        while not any(line.split()[1].endswith(listening) for line in _tcp_lines(host.path(f"/proc/{self.pid}"))):
            if not host.running(self.pid) or time.monotonic() > deadline:
                raise LabError("Redis did not start.", hint=f"`redis-server --bind {ADDRESS}` on the host tells why.")
            time.sleep(POLL_SECONDS)


def checks(pid: int, runs: bool, first: dict[str, Any], last: dict[str, Any], legs: Sequence[Leg]) -> tuple[Check, ...]:
    """
    Judge. Pure.

    Args:
        pid: of Redis, when it was started.
        runs: whether a process with this PID runs on the host where the last move ended.
        first, last: what the client told when it began, and after it had read everything back.
        legs: the moves, in order.
    """
    server = ("server_pid", "run_id")
    same = runs and first["server_pid"] == pid and all(first[name] == last.get(name) for name in server)
    connection = ("own_port", "connection_id")
    survived = not last["failures"] and all(first[name] == last.get(name) for name in connection)
    lost = lost_values(last)
    leftovers = [left for leg in legs for left in leg.leftovers]
    values = f"{last['written']:,} numbers and {last.get('blocks', 0):,} blocks read back"
    return (
        Check(
            "same process",
            same,
            f"PID {first['server_pid']}" + ("" if same else f" before, {last.get('server_pid', 'unknown')} now"),
        ),
        Check(
            "connection survived",
            survived,
            f"same socket (port {first['own_port']}), no reconnect" if survived else _failure(last),
        ),
        Check("resets", last["resets"] == 0, str(last["resets"])),
        Check("values lost", lost == 0, f"{lost} of {values}"),
        Check("traces left", not leftovers, "; ".join(leftovers) or "no process, address, rule, mount or image"),
    )


def lost_values(last: dict[str, Any]) -> int:
    """What was acknowledged and could not be read back as it was written; all of it when nothing could be read."""
    if "lost_numbers" not in last:
        return int(last["written"])
    return int(last["lost_numbers"]) + int(last["lost_blocks"]) + int(last["wrong"])


def _failure(last: dict[str, Any]) -> str:
    return "; ".join(last["failures"]) or "the server sees another connection than at the beginning"


def _tcp_lines(process: Path) -> list[str]:
    try:
        return (process / "net" / "tcp").read_text().splitlines()[1:]
    except OSError:
        return []
