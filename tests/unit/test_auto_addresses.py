"""`--address auto` takes what is the workload's alone, and never what a host is reached by."""

from __future__ import annotations

from phaul.migration.auto_addresses import resolve
from phaul.migration.facts import (
    AddressFacts,
    AddressRequest,
    ConnectionFacts,
    HostFacts,
    MigrationRequest,
    TaskFacts,
    WorkloadFacts,
)

SOURCE = HostFacts(
    host_name="a",
    addresses=(
        AddressFacts("10.0.0.1", 24, "eth0"),
        AddressFacts("10.0.0.50", 24, "eth0"),
        AddressFacts("10.0.0.51", 32, "eth0"),
        AddressFacts("2001:db8::1", 64, "eth0"),
        AddressFacts("2001:db8::50", 64, "eth0"),
        AddressFacts("192.0.2.1", 24, "bond0"),
    ),
)


def found(*used: str, others: tuple[str, ...] = (), own: str = "10.0.0.1", named: tuple[str, ...] = ()) -> list[str]:
    connections = tuple(ConnectionFacts("udp", "close", address, 53, "0.0.0.0", 0) for address in used)
    workload = WorkloadFacts(
        4711, (TaskFacts(4711, 1, "x", (4711,), 0, 1),), 1, (), connections, addresses_of_others=others
    )
    asked = tuple(AddressRequest(each, 24, "eth9") for each in named)
    request = MigrationRequest(4711, "b", asked, auto_addresses=True)
    resolved = resolve(request, workload, SOURCE, own)
    assert not resolved.auto_addresses
    return [f"{each.address}/{each.prefix_length}{each.device}" for each in resolved.addresses]


def test_what_the_workload_uses_moves_with_it() -> None:
    assert found("10.0.0.50", "10.0.0.51", "2001:db8::50", "127.0.0.1", "0.0.0.0", "::") == [
        "10.0.0.50/24",
        "10.0.0.51/32",
        "2001:db8::50/64",
    ]
    assert found("::ffff:10.0.0.50") == ["10.0.0.50/24"]
    assert found("198.18.0.1") == []


def test_what_others_need_stays() -> None:
    assert found("10.0.0.50", "10.0.0.51", others=("10.0.0.50",)) == ["10.0.0.51/32"]
    assert found("10.0.0.1", "2001:db8::1", own="10.0.0.1") == ["2001:db8::1/64"]
    assert found("10.0.0.50", own="10.0.0.50") == []
    assert found("192.0.2.1") == []  # bond0 would have none


def test_what_was_named_stays_as_it_was_named() -> None:
    assert found("10.0.0.50", "10.0.0.51", named=("10.0.0.50",)) == ["10.0.0.50/24eth9", "10.0.0.51/32"]


def test_nothing_is_looked_for_unless_asked() -> None:
    request = MigrationRequest(4711, "b")
    workload = WorkloadFacts(4711, (), 1, (), (ConnectionFacts("tcp", "listen", "10.0.0.50", 80, "0.0.0.0", 0),))
    assert resolve(request, workload, SOURCE, "").addresses == ()
