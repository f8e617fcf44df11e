"""What is told to clients of connections that were not taken along, and which connections those are."""

from __future__ import annotations

import socket
import struct

import pytest

from phaul.agent import requests
from phaul.errors import UsageError
from phaul.migration.facts import ConnectionFacts, TaskFacts, WorkloadFacts
from phaul.network.dismissal import acknowledgement
from phaul.network.neighbours import internet_checksum
from phaul.rpc.v1 import facts_pb2, peer_pb2
from phaul.system.sockets import InternetSocket, parse_table
from phaul.workloads import holdings

FOUR = ConnectionFacts("tcp", "established", "192.0.2.1", 80, "192.0.2.9", 40000)
SIX = ConnectionFacts("tcp", "established", "2001:db8::1", 80, "2001:db8::9", 40000)


@pytest.mark.parametrize("connection", [FOUR, SIX])
def test_a_bare_acknowledgement_with_a_right_checksum(connection: ConnectionFacts) -> None:
    segment = acknowledgement(connection)
    local, remote, sequence, number, offset, flags = struct.unpack_from("!HHIIBB", segment)
    assert (local, remote, sequence, number, offset, flags) == (80, 40000, 0, 0, 0x50, 0x10)
    family = socket.AF_INET6 if connection is SIX else socket.AF_INET
    ends = [socket.inet_pton(family, each) for each in (connection.local_address, connection.remote_address)]
    lengths = struct.pack("!II", 20, 6) if connection is SIX else struct.pack("!HH", 6, 20)
    assert internet_checksum(b"".join(ends) + lengths + segment) == 0


# As /proc/net/tcp has them on 6.12: a listener, what waits to be accepted there, a half-open one, one of a process, and
# TIME_WAIT.
TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000001 00:00000000 00000000     0        0 70 1 0 100 0 0 10 0
   1: 010200C0:0050 090200C0:9C40 01 00000000:00000005 00:00000000 00000000     0        0 0 1 0 20 0 0 10 -1
   2: 010200C0:0050 090200C0:9C41 03 00000000:00000000 01:00000000 00000000     0        0 0 1 0
   3: 010200C0:0050 090200C0:9C42 01 00000000:00000000 00:00000000 00000000     0        0 71 1 0 20 4 30 10 -1
   4: 010200C0:0050 090200C0:9C43 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
"""


def test_what_the_kernel_alone_knows_of() -> None:
    waiting = parse_table(TABLE, "tcp", unaccepted=True)
    assert [(each.state, each.remote_port) for each in waiting] == [("established", 40000), ("syn_recv", 40001)]
    assert [each.inode for each in parse_table(TABLE, "tcp")] == [70, 71]


def found(*listeners: ConnectionFacts, waiting: tuple[InternetSocket, ...], patch: pytest.MonkeyPatch) -> list[int]:
    patch.setattr(holdings, "unaccepted_sockets", lambda _: waiting)
    facts = WorkloadFacts(1, (TaskFacts(1, 0, "x", (1,), 0, 1),), 0, (), listeners)
    return [each.remote_port for each in holdings.unaccepted_of(facts)]


def test_only_those_at_its_own_listening_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = (
        InternetSocket("tcp", "established", "192.0.2.1", 80, "192.0.2.9", 1, 0, 0),
        InternetSocket("tcp", "established", "192.0.2.2", 80, "192.0.2.9", 2, 0, 0),
        InternetSocket("tcp", "established", "192.0.2.1", 81, "192.0.2.9", 3, 0, 0),
    )
    one = ConnectionFacts("tcp", "listen", "192.0.2.1", 80, "0.0.0.0", 0)
    assert found(one, waiting=waiting, patch=monkeypatch) == [1]
    everywhere = ConnectionFacts("tcp", "listen", "::", 80, "::", 0)
    assert found(everywhere, waiting=waiting, patch=monkeypatch) == [1, 2]
    client = ConnectionFacts("tcp", "established", "192.0.2.1", 81, "192.0.2.9", 3)
    assert found(client, waiting=waiting, patch=monkeypatch) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocol": "udp"}, {"local_address": "x"}, {"remote_address": "::1"}, {"local_port": 0},
        {"remote_port": 70000},
    ],
)  # fmt: skip
def test_a_peer_cannot_have_anything_else_sent(wrong: dict[str, object]) -> None:
    def asked(**values: object) -> peer_pb2.RestoreRequest:
        right = {"local_address": "192.0.2.1", "local_port": 80, "remote_address": "192.0.2.9", "remote_port": 1}
        given = {"protocol": "tcp", **right, **values}
        return peer_pb2.RestoreRequest(migration_id="ab" * 8, unaccepted=[facts_pb2.ConnectionFacts(**given)])  # type: ignore[arg-type]

    assert len(requests.unaccepted(asked())) == 1
    with pytest.raises(UsageError):
        requests.unaccepted(asked(**wrong))
