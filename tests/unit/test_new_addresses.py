"""New addresses: what is typed, how sockets arrive, what is refused, and what becomes of CRIU's image."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from phaul.criu.addresses import FILES, FILES_MAGIC, readdress
from phaul.criu.images import COMMON_MAGIC, ImageError, decode_records, encode_image
from phaul.errors import UsageError
from phaul.migration.facts import (
    ConnectionFacts,
    DestinationFacts,
    HostFacts,
    MigrationRequest,
    NewAddress,
    TaskFacts,
    WorkloadFacts,
)
from phaul.migration.new_addresses import as_arriving, new_address_problems, parse_new_address
from phaul.rpc.criu import images_pb2

OLD, NEW = "192.0.2.10", "198.51.100.10"
LISTENER = ConnectionFacts("tcp", "listen", OLD, 80, "0.0.0.0", 0)
CLIENT = ConnectionFacts("tcp", "established", OLD, 80, "203.0.113.1", 5000)
DATAGRAMS = ConnectionFacts("udp", "close", OLD, 53, "0.0.0.0", 0)
REQUEST = MigrationRequest(1, "b", new_addresses=(NewAddress(OLD, NEW),))
DESTINATION = DestinationFacts(HostFacts("b"), local_addresses=("127.0.0.1", NEW))


def workload(*connections: ConnectionFacts) -> WorkloadFacts:
    return WorkloadFacts(1, (TaskFacts(1, 0, "x", (1,), 0, 1),), 0, (), connections)


@pytest.mark.parametrize(
    "text",
    [
        "",
        OLD,
        f"{OLD}=",
        f"{OLD}=::1",
        "a=b",
        f"{OLD}={NEW}/33",
        f"{OLD}={NEW}/0",
        f"{OLD}={NEW}/x",
        f"127.0.0.1={NEW}",
    ],
)
def test_what_is_no_pair_of_addresses_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_new_address(text)


def test_sockets_arrive_with_the_new_address_and_without_connections() -> None:
    arriving = as_arriving(REQUEST, workload(LISTENER, CLIENT, DATAGRAMS)).connections
    assert arriving == (replace(LISTENER, local_address=NEW), replace(DATAGRAMS, local_address=NEW))
    plain = replace(REQUEST, new_addresses=())
    assert as_arriving(plain, workload(CLIENT)).connections == (CLIENT,)


def codes(request: MigrationRequest, destination: DestinationFacts, *connections: ConnectionFacts) -> list[str]:
    return [
        problem.code for problem in new_address_problems(request, workload(*connections), HostFacts("a"), destination)
    ]


def test_what_cannot_be_had_is_said() -> None:
    assert codes(REQUEST, DESTINATION, LISTENER) == []
    assert codes(REQUEST, DESTINATION, LISTENER, CLIENT) == ["connections_closed"]
    assert codes(REQUEST, DESTINATION) == ["new_address_unused"]
    assert codes(REQUEST, replace(DESTINATION, local_addresses=()), LISTENER) == ["new_address_missing"]


def words(address: str) -> list[int]:
    packed = ip_address(address).packed
    return [int.from_bytes(packed[at : at + 4], "little") for at in range(0, len(packed), 4)]


@pytest.mark.parametrize(
    ("family", "old", "new", "before", "after"),
    [
        (socket.AF_INET, OLD, NEW, OLD, NEW),
        (socket.AF_INET, OLD, NEW, "192.0.2.11", "192.0.2.11"),
        (socket.AF_INET6, "fd00::1", "fd00::2", "fd00::1", "fd00::2"),
        (socket.AF_INET6, OLD, NEW, f"::ffff:{OLD}", f"::ffff:{NEW}"),
        (socket.AF_INET6, OLD, NEW, "::", "::"),
    ],
)
def test_the_image_gets_it_and_keeps_all_else(
    tmp_path: Path, family: int, old: str, new: str, before: str, after: str
) -> None:
    # Field 1 (type), field 2 (id) and a field of the socket that is not declared here, as CRIU writes them.
    inner = images_pb2.InternetSocket(family=family, src_addr=words(before)).SerializeToString() + b"\x38\x50"
    record = b"\x08\x04\x10\x07\x22" + bytes([len(inner)]) + inner
    magics = (COMMON_MAGIC, FILES_MAGIC)
    other = b"\x08\x01\x10\x09"
    content = encode_image(magics, [images_pb2.OpenFile.FromString(each) for each in (record, other)])
    (tmp_path / FILES).write_bytes(content)
    readdress(tmp_path, {old: new})
    found, kept = decode_records((tmp_path / FILES).read_bytes(), magics)
    assert list(images_pb2.OpenFile.FromString(found).isk.src_addr) == words(after)
    assert kept == other
    assert len(found) == len(record)
    assert b"\x38\x50" in found
    assert b"\x10\x07" in found


def test_another_image_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / FILES).write_bytes(b"something else")
    readdress(tmp_path, {})
    with pytest.raises(ImageError):
        readdress(tmp_path, {OLD: NEW})
    assert (tmp_path / FILES).read_bytes() == b"something else"
