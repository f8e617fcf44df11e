"""New addresses for a network namespace of the workload's own: what it becomes, what is refused, what is only said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.agent import requests
from phaul.cli.migrate import Typed, build_request
from phaul.errors import UsageError
from phaul.migration import new_identity
from phaul.migration.facts import (
    AddressFacts,
    ClaimFacts,
    ConnectionFacts,
    DestinationFacts,
    HostFacts,
    LinkFacts,
    MigrationRequest,
    NetworkFacts,
    NewAddress,
    Problem,
    Severity,
    TaskFacts,
    WorkloadFacts,
)
from phaul.migration.interfaces import TreeIdentity
from phaul.migration.new_addresses import as_arriving, new_address_problems, parse_new_address, parse_new_gateway
from phaul.migration.new_own_addresses import readdressed, readdressing
from phaul.migration.own_network import network_from
from phaul.migration.plan import plan
from phaul.migration.preflight import compare
from phaul.migration.readdressing import STAYING, NewPlace, Readdressing, readdressing_from
from phaul.rpc.v1 import facts_pb2

OLD, NEW = "10.0.0.5", "10.0.9.5"
VETH = LinkFacts(
    "eth0", "veth", "02:00:00:00:00:50", "vweb", "br0", 1500, (f"{OLD}/24", "fd00::5/64"), 7, 2,
    gateways=("10.0.0.1", "fe80::1"), on_link=("192.0.2.0/24",),
)  # fmt: skip
HERE = HostFacts("a", addresses=(AddressFacts("10.0.0.2", 24, "br0"),))
THERE = HostFacts("b", addresses=(AddressFacts("10.0.0.3", 16, "br0"), AddressFacts("10.5.0.3", 16, "eth1")))
CLIENT = ConnectionFacts("tcp", "established", OLD, 80, "203.0.113.1", 5000)


def asked(*pairs: str, gateways: tuple[str, ...] = ()) -> MigrationRequest:
    return MigrationRequest(
        1,
        "b",
        new_addresses=tuple(map(parse_new_address, pairs)),
        new_gateways=tuple(map(parse_new_gateway, gateways)),
    )


def workload(*links: LinkFacts, connections: tuple[ConnectionFacts, ...] = ()) -> WorkloadFacts:
    return WorkloadFacts(
        1,
        (TaskFacts(1, 0, "x", (1,), 0, 1),),
        0,
        (),
        connections,
        has_own_network=True,
        network=NetworkFacts(links),
    )


def problems(
    request: MigrationRequest, facts: WorkloadFacts, *claims: ClaimFacts, there: HostFacts = THERE
) -> list[Problem]:
    return list(new_address_problems(request, facts, HERE, DestinationFacts(there, claims=claims)))


def codes(request: MigrationRequest, *claims: ClaimFacts, link: LinkFacts = VETH) -> list[str]:
    return [each.code for each in problems(request, workload(link), *claims)]


GATEWAY = ("10.0.0.1=10.0.9.1",)


def test_what_becomes_of_the_network() -> None:
    link = replace(VETH, on_link=("10.0.0.0/24", "192.0.2.0/24"))
    request = asked(f"{OLD}={NEW}/16", "fd00::5=fd09::5", gateways=GATEWAY)
    change = readdressing(request, NetworkFacts((link,)))
    places = NewPlace(2, f"{OLD}/24", f"{NEW}/16"), NewPlace(2, "fd00::5/64", "fd09::5/64")
    assert change == Readdressing(places, (("10.0.0.1", "10.0.9.1"),))
    assert readdressed(NetworkFacts((link,)), change).links == (
        replace(
            link,
            addresses=(f"{NEW}/16", "fd09::5/64"),
            gateways=("10.0.9.1", "fe80::1"),
            on_link=("10.0.0.0/16", "192.0.2.0/24"),
        ),
    )
    assert readdressing(request, None) is STAYING
    two = replace(VETH, addresses=(*VETH.addresses, "10.0.0.6/24"))
    assert not readdressing(request, NetworkFacts((two,))).places[0].alone
    assert as_arriving(request, workload(link)).network == readdressed(NetworkFacts((link,)), change)


def test_what_the_destination_is_told_and_the_journal_keeps() -> None:
    request = replace(asked(f"{OLD}={NEW}", gateways=GATEWAY), new_macs=())
    facts = workload(VETH)
    there = new_identity.at_destination(request, facts.network, THERE, "m-1")
    assert there is not None
    assert there.links[0].addresses == (f"{NEW}/24", "fd00::5/64")
    kept = plan(facts, (), request, TreeIdentity("boot", ((1, 1),)))
    assert network_from(kept["network"]) == facts.network
    assert readdressing_from(kept["readdressing"]) == readdressing(request, facts.network)
    assert new_identity.at_destination(request, None, THERE, "m-1") is None


def test_what_can_be_had() -> None:
    assert codes(asked(f"{OLD}={NEW}/16")) == []  # the gateway is in it
    assert codes(asked(f"{OLD}={NEW}", gateways=GATEWAY)) == []
    assert codes(asked("fd00::5=fd09::5")) == []  # its gateway is of the link
    assert codes(asked("fd00::5=fd00::9", f"{OLD}=10.0.0.9")) == []
    assert codes(asked(gateways=("10.0.0.1=10.0.0.254",))) == []
    # A gateway that a route leads to by itself, as with an address of a single host.
    single = replace(VETH, addresses=(f"{OLD}/32",), on_link=("10.0.0.1/32",))
    assert codes(asked(f"{OLD}={NEW}"), link=single) == []


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (asked("10.0.0.77=10.0.0.78"), "old_address_missing"),
        (asked(f"{OLD}=10.0.0.7", f"{OLD}=10.0.0.8"), "old_address_missing"),
        (asked(f"{OLD}=10.0.0.2"), "new_address_taken"),  # the source's
        (asked(f"{OLD}=10.0.0.6"), "new_address_taken"),  # its own
        (asked(f"{OLD}=10.0.0.7", "10.0.0.6=10.0.0.7"), "new_address_taken"),
        (asked(f"{OLD}=10.0.0.255"), "new_address_prefix"),
        (asked(f"{OLD}=10.0.0.0"), "new_address_prefix"),
        (asked("fd00::5=fd00::"), "new_address_prefix"),
        (asked(f"{OLD}={NEW}"), "gateway_unreachable"),
        (asked(f"{OLD}=10.0.0.7", gateways=GATEWAY), "gateway_unreachable"),
        (asked(gateways=("10.0.0.2=10.0.0.3",)), "new_gateway_unused"),
        (asked(f"{OLD}=10.1.0.9/8"), "new_address_elsewhere"),
    ],
)
def test_what_is_said(request_: MigrationRequest, code: str) -> None:
    two = replace(VETH, addresses=(*VETH.addresses, "10.0.0.6/32"))
    found = problems(request_, workload(two))
    assert [each.code for each in found] == [code]
    assert (found[0].severity is Severity.WARNS) == (code == "new_address_elsewhere")


def test_the_peer_of_a_datagram_socket_is_to_be_reached_as_it_was() -> None:
    alone = replace(VETH, gateways=(), on_link=())
    near, far = (ConnectionFacts("udp", "established", OLD, 53, each, 9) for each in ("10.0.0.77", "203.0.113.1"))
    for peer, link, found in (
        (near, alone, ["peer_unreachable"]),
        (near, VETH, ["gateway_unreachable"]),
        (far, alone, []),
    ):
        facts = workload(link, connections=(peer, replace(peer, remote_port=0)))
        assert [each.code for each in problems(asked(f"{OLD}={NEW}"), facts)] == found
        assert problems(asked(f"{OLD}=10.0.0.9"), facts) == []
    tcp = workload(alone, connections=(replace(near, protocol="tcp"),))
    assert [each.code for each in problems(asked(f"{OLD}={NEW}"), tcp)] == ["connections_closed"]


def test_two_may_change_places() -> None:
    two = replace(VETH, addresses=(f"{OLD}/24", "10.0.0.6/24"))
    claim = ClaimFacts("10.0.0.6", VETH.mac)  # by the workload itself
    assert codes(asked(f"{OLD}=10.0.0.6", f"10.0.0.6={OLD}"), claim, link=two) == []


def test_nobody_may_have_a_new_address_not_even_a_host_and_it_is_said_once() -> None:
    request = asked(f"{OLD}=10.0.0.9")
    for mac in ("02:00:00:00:00:99", VETH.mac):
        claims = (ClaimFacts("10.0.0.9", mac),)
        assert codes(request, *claims) == ["new_address_taken"]
        every = compare(request, workload(VETH), HERE, DestinationFacts(THERE, claims=claims))
        assert [each.code for each in every if "10.0.0.9" in each.message] == ["new_address_taken"]


def test_a_gateway_that_was_not_reached_before_is_nobodys_fault() -> None:
    link = replace(VETH, gateways=("172.16.0.1",))
    assert codes(asked("fd00::5=fd09::5"), link=link) == []


def test_connections_are_closed_and_those_that_wait_may_be_lost() -> None:
    waiting = ConnectionFacts("tcp", "listen", "0.0.0.0", 80, "0.0.0.0", 0, unaccepted=2)
    facts = workload(VETH, connections=(CLIENT, waiting))
    request = asked(f"{OLD}=10.0.0.9")
    assert [each.code for each in problems(request, facts)] == ["connections_closed"]
    found = compare(request, facts, HERE, DestinationFacts(THERE))
    assert [each.severity for each in found if each.code == "unaccepted_connections"] == [Severity.WARNS]
    only_gateway = asked(gateways=("10.0.0.1=10.0.0.254",))
    assert problems(only_gateway, facts) == []
    found = compare(only_gateway, facts, HERE, DestinationFacts(THERE))
    assert [each.severity for each in found if each.code == "unaccepted_connections"] == [Severity.REFUSES]


def test_the_network_of_the_host_has_its_own_prefixes_and_gateways() -> None:
    facts = replace(workload(), has_own_network=False, network=None, connections=(replace(CLIENT, state="listen"),))
    destination = DestinationFacts(THERE, local_addresses=(NEW,))
    request = asked(f"{OLD}={NEW}/16", gateways=GATEWAY)
    found = {each.code for each in new_address_problems(request, facts, HERE, destination)}
    assert {"new_address_prefix", "new_gateway_host_network"} <= found


def test_what_is_typed_reaches_the_agent_and_is_looked_at_there_again() -> None:
    message = build_request(7, "b", Typed(new_addresses=(f"{OLD}={NEW}/16", "FD00::5=fd09::5"), new_gateways=GATEWAY))
    read = requests.migration_request(message)
    assert read.new_addresses == (NewAddress(OLD, NEW, 16), NewAddress("fd00::5", "fd09::5"))
    assert read.new_gateways == (NewAddress("10.0.0.1", "10.0.9.1"),)
    pair = facts_pb2.NewAddress(old=OLD, new=NEW)
    for bad in (
        facts_pb2.MigrationRequest(new_addresses=[facts_pb2.NewAddress(old="FD00::5", new="fd09::5")]),
        facts_pb2.MigrationRequest(new_addresses=[facts_pb2.NewAddress(old=OLD, new=NEW, prefix_length=33)]),
        facts_pb2.MigrationRequest(new_gateways=[facts_pb2.NewAddress(old=OLD, new="x")]),
        facts_pb2.MigrationRequest(new_gateways=[pair] * 1000),
    ):
        bad.root_pid, bad.destination = 7, "b"
        with pytest.raises(UsageError):
            requests.migration_request(bad)


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1", "10.0.0.1=", "10.0.0.1=fe80::1", "10.0.0.1=10.0.0.2/24", "a=b", "fe80::1%x=fe80::2"]
)
def test_what_is_no_pair_of_gateways_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_new_gateway(text)
    assert parse_new_gateway("fe80::1 = FE80::2") == NewAddress("fe80::1", "fe80::2")


addresses = st.builds(
    lambda last, prefix: f"10.0.{last >> 8}.{last & 255}/{prefix}", st.integers(0, 65535), st.integers(8, 32)
)


@given(st.lists(addresses, max_size=4, unique_by=lambda each: each.partition("/")[0]), addresses, st.data())
def test_only_what_was_asked_for_changes(has: list[str], new: str, data: st.DataObject) -> None:
    link = replace(VETH, addresses=tuple(has))
    old = data.draw(st.sampled_from(has)).partition("/")[0] if has else OLD
    bare, _, prefix = new.partition("/")
    request = MigrationRequest(1, "b", new_addresses=(NewAddress(old, bare, int(prefix)),))
    network = NetworkFacts((link,))
    after = readdressed(network, readdressing(request, network)).links[0]
    assert list(after.addresses) == [new if each.partition("/")[0] == old else each for each in has]
    assert replace(after, addresses=link.addresses) == link
