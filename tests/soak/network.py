"""A soak of connections: workloads of every kind of network move back and forth, and a capture at the client judges.

Called by `python -m tests.soak --network` and, shorter, by tests/lab/test_soak_network.py. Each move takes one of the
workloads, drawn from a seeded generator, to the other host; all keep exchanging numbered blocks with their clients.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from phaul.lab.cluster import Lab
from phaul.lab.host import Host
from tests.lab import remains
from tests.lab.boxes import BRIDGE, Box, on_bridges
from tests.lab.clients import Numbering
from tests.lab.moves import Move
from tests.lab.stage import Stage
from tests.lab.wire import Capture

PORT = 5000
ATTEMPTS = 5
LATE_MS = 50
Say = Callable[[str], None]


@dataclass(slots=True)
class Outcome:
    """What it came to. `wrong` is empty when all is well."""

    moves: int = 0
    blocks: int = 0
    connections: int = 0
    first_ms: list[float] = field(default_factory=list)  # of each move: from RESUME to the first packet at the client
    late: list[str] = field(default_factory=list)  # what those were that took long, and where the time went
    wrong: list[str] = field(default_factory=list)

    def described(self) -> str:
        """In a few lines."""
        ordered = sorted(self.first_ms)
        middle, most = statistics.median(ordered), ordered[-1]
        return "\n".join(
            [
                f"{self.moves} moves of {self.connections} connections, {self.blocks} blocks answered",
                f"RESUME to the first packet at the client: median {middle:.0f} ms, longest {most:.0f} ms, "
                f"{len(self.late)} of {len(ordered)} above {LATE_MS} ms",
                *self.late,
            ]
        )


@dataclass(slots=True)
class Workload:
    """One that moves. `addresses` are named to phaul, `listens` are where its clients are."""

    name: str
    pid: int
    host: Host
    addresses: tuple[str, ...]
    client: Numbering
    listens: tuple[str, ...]


def run(lab: Lab, seed: int, moves: int, say: Say = lambda _: None, *, limit_seconds: float = 3600.0) -> Outcome:
    """Soak; what is left behind at the end is found too."""
    outcome = Outcome()
    draw = random.Random(seed)
    ends_at = time.monotonic() + limit_seconds
    stage = Stage(lab)
    with ExitStack() as stack:
        stack.callback(stage.clear)
        on_bridges(stage)
        workloads = [
            _of_host(stage, stack),
            _in_box(stage, stack, "veth", 10),
            _in_box(stage, stack, "macvlan", 4),
        ]
        watched = [address for each in workloads for address in each.listens]
        capture = stack.enter_context(Capture(stage.client, *watched))
        outcome.connections = sum(len(each.client.brief()) for each in workloads)
        while outcome.moves < moves and time.monotonic() < ends_at and not outcome.wrong:
            workload = draw.choice(workloads)
            _move(stage, workload, capture, outcome)
            outcome.moves += 1
            if outcome.moves % 10 == 0:
                say(f"{outcome.moves} moves")
        # Before the clients end: what they have not read by then is answered with one.
        outcome.wrong += [f"a reset: {line}" for line in capture.resets()]
        for workload in workloads:
            for account in workload.client.finish(brief=True):
                outcome.blocks += account.acknowledged
                if account.error or account.sent != account.acknowledged:
                    outcome.wrong.append(f"{workload.name}: {account.error or 'blocks were never answered'}")
        outcome.wrong += capture.rivals()
    for host, before in stage.before.items():
        try:
            remains.assert_as_before(host, before)
        except AssertionError as error:
            outcome.wrong.append(str(error))
    return outcome


def _of_host(stage: Stage, stack: ExitStack) -> Workload:
    """Addresses of both families on a bridge of the host, that phaul finds by itself."""
    plain = [stage.add_address(each, device=BRIDGE) for each in (stage.ip4, stage.ip6)]
    listen = [word for address in plain for word in ("--listen", address, str(PORT))]
    pid = stage.start("server", *listen)
    places = [(address, PORT) for address in plain] * 5
    client = stack.enter_context(Numbering(stage.client, *places))
    return Workload("addresses of the host", pid, stage.a, ("auto",), client, tuple(plain))


def _in_box(stage: Stage, stack: ExitStack, kind: str, connections: int) -> Workload:
    box = stack.enter_context(Box(stage, kind))
    pid = box.serve(PORT)
    places = [(box.ip4, PORT), (box.ip6, PORT)] * (connections // 2)
    client = stack.enter_context(Numbering(stage.client, *places))
    return Workload(f"a {kind} of its own", pid, stage.a, (), client, (box.ip4, box.ip6))


def _move(stage: Stage, workload: Workload, capture: Capture, outcome: Outcome) -> None:
    """Move one to the other host; note how long its clients heard nothing, and whether all go on."""
    destination = stage.other(workload.host)
    stage.wait_exchange(workload.client, 5)
    for _ in range(ATTEMPTS):
        with Move(workload.host, workload.pid, destination.ip4, *workload.addresses) as move:
            move.wait()
        if move.status == 0:
            break
    if move.status != 0:
        outcome.wrong.append(f"{workload.name} did not move: {move.told()}")
        return
    workload.host = destination
    stage.wait_exchange(workload.client, 5)
    resume = move.phase_at("resume")
    first = max(capture.first_after(address, resume) for address in workload.listens)  # of each family
    took_ms = (first - resume) * 1e3
    outcome.first_ms.append(took_ms)
    if took_ms > LATE_MS:
        phases = {each["phase"]: each["unix_us"] for each in move.events if each["event"] == "phase_started"}
        over_ms = (phases["cleanup"] - phases["resume"]) / 1e3
        outcome.late.append(f"move {outcome.moves + 1}, {workload.name}: {took_ms:.0f} ms, of RESUME {over_ms:.0f} ms")
