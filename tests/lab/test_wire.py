"""What passes the client's device while connections move: no reset, no address claimed twice, soon a sign of life."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from phaul.lab.cluster import Lab
from phaul.lab.host import Host

from .boxes import Box, on_bridges
from .clients import Numbering
from .moves import Move, migrate
from .road import Road
from .stage import Stage
from .wire import Capture

PORT = 5000
DELAY_SECONDS = 0.01  # each way: 20 ms for a round trip
LOSS = 0.01
SLOWEST_FIRST_SECONDS = 3.0  # of a loaded machine; it is printed, and `make soak-network` says what a quiet one takes
# A retransmission that is lost as well waits twice as long, and a hundred connections on one processor wait for it too.
LONGEST_GAP_SECONDS = 15.0


def check(stage: Stage, capture: Capture, client: Numbering, move: Move, *addresses: str, more: int = 5) -> None:
    """All goes on, nothing was reset, and the first packet came soon."""
    stage.wait_exchange(client, more)
    assert capture.resets() == []  # before the clients end: what they have not read by then is answered with one
    accounts = client.finish()
    for account in accounts:
        account.check(move.phase_at("freeze"), move.ended, finished=True)
        assert account.longest_gap(move.began) < LONGEST_GAP_SECONDS
    assert capture.rivals() == []
    resume = move.phase_at("resume")
    first = min(capture.first_after(address, resume) for address in addresses) - resume
    print(f"{len(accounts)} connections: the first packet came {first * 1e3:.0f} ms after RESUME")
    assert first < SLOWEST_FIRST_SECONDS


@pytest.mark.parametrize("count", [1, 500])
def test_connections_under_load(stage: Stage, count: int) -> None:
    """Half of them over IPv4, half over IPv6, to one dual-stack socket."""
    addresses = stage.add_address(stage.ip4), stage.add_address(stage.ip6)
    listen = ["--listen", "::", str(PORT), "--dual-stack"]
    pid = stage.start("server", *listen)
    places = [(addresses[number % 2], PORT) for number in range(count)]
    with Capture(stage.client, *addresses) as capture, Numbering(stage.client, *places) as client:
        stage.wait_exchange(client, 3)
        move = stage.move(pid, stage.a, stage.ip4, stage.ip6, to=stage.b.ip4)
        assert move.report["connections"] >= count
        check(stage, capture, client, move, *addresses[:count], more=3)


@pytest.mark.parametrize("network", ["addresses", "veth"])
def test_a_slow_and_lossy_road(lab: Lab, stage: Stage, network: str) -> None:
    """20 ms and one frame in a hundred lost, with windows full in both directions."""
    with ExitStack() as stack:
        stack.enter_context(Road(lab, DELAY_SECONDS, LOSS))
        if network == "veth":
            on_bridges(stage)
            box = stack.enter_context(Box(stage))
            addresses = (box.ip4, box.ip6)
            pid = box.serve(PORT, "--flood", "8")
        else:
            addresses = (stage.add_address(stage.ip4), stage.add_address(stage.ip6))
            listen = [word for address in addresses for word in ("--listen", address, str(PORT))]
            pid = stage.start("server", *listen, "--flood", "8")
        capture = stack.enter_context(Capture(stage.client, *addresses))
        places = [(address, PORT) for address in addresses] * 5
        client = stack.enter_context(Numbering(stage.client, *places, options=["--window", "2000"]))
        stage.wait_exchange(client, 5)
        moving = () if network == "veth" else ("auto",)
        move = migrate(stage.a, pid, stage.b.ip4, *moving)
        assert move.status == 0, move.told()
        check(stage, capture, client, move, *addresses)


def test_half_closed_and_waiting_ones(stage: Stage) -> None:
    """Connections whose one end is closed, and those that linger in TIME_WAIT, are no cause of a reset either."""
    address = stage.add_address(stage.ip4)
    pid = stage.spawn(["python3", "-c", HALF_CLOSED_SERVER, address, str(PORT)])
    stage.wait_listening(stage.a, PORT)
    client = stage.client.popen(["python3", "-c", HALF_CLOSED_CLIENT, address, str(PORT)])
    with Capture(stage.client, address) as capture:
        assert client.stdout is not None
        assert client.stdout.readline() == "half-closed\n"
        assert time_waits(stage.a) > 0
        move = stage.move(pid, stage.a, stage.ip4)
        assert move.status == 0
        out, err = client.communicate(timeout=30)
        assert out == "whole\n", (out, err)
        assert capture.resets() == []


def time_waits(host: Host) -> int:
    deadline = time.monotonic() + 5
    while True:
        found = len(host.exec(["ss", "-Htn", "state", "time-wait", f"sport = :{PORT}"]).stdout.splitlines())
        if found or time.monotonic() > deadline:
            return found


# Counts to a thousand for a client that has closed its own direction; says goodbye first to the one before it.
HALF_CLOSED_SERVER = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
first, _ = listener.accept()
first.close()
second, _ = listener.accept()
while second.recv(1000): pass
for number in range(1000):
    second.sendall(b"%06d" % number)
    time.sleep(0.003)
second.close()
time.sleep(1000)
"""
HALF_CLOSED_CLIENT = """
import socket, sys
place = sys.argv[1], int(sys.argv[2])
with socket.create_connection(place) as first:
    assert first.recv(1) == b""
with socket.create_connection(place) as second:
    second.sendall(b"all of it")
    second.shutdown(socket.SHUT_WR)
    data = second.recv(6)
    print("half-closed", flush=True)
    while part := second.recv(100000):
        data += part
    print("whole" if data == b"".join(b"%06d" % number for number in range(1000)) else "broken", flush=True)
"""
