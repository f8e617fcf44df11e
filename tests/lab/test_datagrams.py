"""UDP workloads: connected and unconnected sockets of both families move with their addresses, and go on counting."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from .clients import Client
from .moves import Move
from .stage import Stage
from .witness import wait_until

PORT, CONNECTED_PORT, OWN_PORT = 5000, 5001, 6000
# The phase is told a moment before the fence stands, and what is sent shortly before may be answered into it.
IN_FLIGHT_SECONDS = 0.5
SILENCE_SECONDS = 0.5  # without a migration, everything is answered within that


class Datagrams(Client):
    """Flows of numbered datagrams."""

    def report(self) -> list[dict[str, Any]]:
        """Say what became of each flow."""
        flows: list[dict[str, Any]] = self.ask("report")
        return flows


def test_datagram_sockets_move_and_go_on_counting(stage: Stage) -> None:
    addresses = stage.add_address(stage.ip4), stage.add_address(stage.ip6)
    served, asked = [], []
    for number, (address, own) in enumerate(zip(addresses, (stage.client.ip4, stage.client.ip6), strict=True)):
        served += [address, str(PORT), own, "0", address, str(CONNECTED_PORT), own, str(OWN_PORT + number)]
        asked += [address, str(PORT), "0", address, str(CONNECTED_PORT), str(OWN_PORT + number)]
    pid = stage.start("datagrams", *served)
    moves: list[Move] = []
    with Datagrams(stage.client, ["datagrams", "client", *asked], "sending") as client:
        wait_heard(client, 100)
        for source in (stage.a, stage.b):
            moves.append(stage.move(pid, source, stage.ip4, stage.ip6, to=stage.other(source).ip4))
            wait_heard(client, 100)
        sockets: set[str] = set()
        for flow in client.report():
            assert flow["errors"] == []
            assert flow["doubled"] == []
            assert len(flow["names"]) == 1, "a socket was made anew"
            assert all(after > before for before, after in pairwise(flow["counts"])), "a socket went back"
            lost = [at for at in flow["unanswered"] if not any(stands_still(move, at) for move in moves)]
            newest = max(flow["unanswered"], default=0.0)
            assert [at for at in lost if at < newest - SILENCE_SECONDS] == []
            sockets |= set(flow["names"])
        assert len(sockets) == 4
    stage.check_ticks(pid, stage.a, stage.b, stage.a)


def stands_still(move: Move, at: float) -> bool:
    """Whether a datagram of this moment may have met nobody."""
    return move.phase_at("freeze") - IN_FLIGHT_SECONDS <= at <= move.ended


def wait_heard(client: Datagrams, more: int) -> None:
    """Wait until each flow has had so many more answers."""
    wanted = [flow["heard"] + more for flow in client.report()]
    wait_until(
        lambda: all(flow["heard"] >= count for flow, count in zip(client.report(), wanted, strict=True)),
        "the datagrams are not answered",
    )
