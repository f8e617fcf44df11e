"""Which of CRIU's lock rules are those of one tree. The listings are of CRIU 4.2.1 with nft 1.0.6 and iptables 1.8."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.migration.facts import ConnectionFacts
from phaul.network.criu_locks import Flow, Owner, parse_flows, parse_rule, parse_table_names

CLIENT = Flow("10.5.0.2", 47672, "10.5.0.1", 5000)
LOOPBACK = Flow("127.0.0.1", 5001, "127.0.0.1", 34084)
ESTABLISHED = ConnectionFacts("tcp", "established", "10.5.0.1", 5000, "10.5.0.2", 47672)
INPUT_RULE = (
    "-A INPUT -s 10.5.0.2/32 -d 10.5.0.1/32 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 47672 --dport 5000 -j DROP"
)

PORTS = st.integers(1, 65535)
FLOWS = st.builds(Flow, st.ip_addresses(v=4).map(str), PORTS, st.ip_addresses(v=4).map(str), PORTS)


def listening(address: str, port: int) -> ConnectionFacts:
    return ConnectionFacts("tcp", "listen", address, port, "0.0.0.0", 0)


def test_tables_of_criu_are_told_from_others() -> None:
    listing = "table inet CRIU-8f323d75-5124-49f1-a5\ntable inet phaul-m1\ntable ip CRIU-1\ntable inet CRIU-77\n"
    assert parse_table_names(listing) == ("CRIU-8f323d75-5124-49f1-a5", "CRIU-77")


def test_flows_of_a_table() -> None:
    concatenations = [["10.5.0.2", 47672, "10.5.0.1", 5000], ["127.0.0.1", 5001, "127.0.0.1", 34084]]
    listing = {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"set": {"name": "conns4", "elem": [{"concat": each} for each in concatenations]}},
            {"set": {"name": "conns6"}},
            {"chain": {"name": "input"}},
        ]
    }
    assert parse_flows(json.dumps(listing)) == (CLIENT, LOOPBACK)


def test_rule_of_criu() -> None:
    assert parse_rule(INPUT_RULE) == CLIENT
    assert parse_rule(INPUT_RULE.replace("INPUT", "OUTPUT")) == CLIENT
    six = INPUT_RULE.replace("10.5.0.2/32", "2001:db8::2/128").replace("10.5.0.1/32", "2001:db8::1/128")
    assert parse_rule(six) == Flow("2001:db8::2", 47672, "2001:db8::1", 5000)


@pytest.mark.parametrize(
    "line",
    [
        "-P INPUT ACCEPT",
        INPUT_RULE.replace("0xc114", "0xc115"),
        INPUT_RULE.replace("! ", ""),
        INPUT_RULE.replace("DROP", "ACCEPT"),
        INPUT_RULE.replace("INPUT", "FORWARD"),
        INPUT_RULE.replace("--sport 47672 ", ""),
        INPUT_RULE.replace("-s 10.5.0.2/32 ", ""),
        "",
    ],
)
def test_rules_of_others(line: str) -> None:
    assert parse_rule(line) is None


def test_one_connection_of_the_tree_makes_the_table_its_own() -> None:
    owner = Owner([ESTABLISHED], moved=())
    assert owner.has_table([LOOPBACK, LOOPBACK.turned(), CLIENT.turned(), CLIENT])
    assert not owner.has_table([LOOPBACK])
    assert not owner.has_table([])


def test_a_table_with_an_address_that_was_moved_away_is_the_trees() -> None:
    assert Owner([], moved=["10.5.0.1"]).has_table([LOOPBACK, CLIENT])
    assert not Owner([], moved=["10.5.0.3"]).has_table([LOOPBACK, CLIENT])


@pytest.mark.parametrize("address", ["10.5.0.1", "0.0.0.0", "::"])
def test_connections_accepted_later_are_known_by_where_the_tree_listened(address: str) -> None:
    owner = Owner([listening(address, 5000)], moved=())
    assert owner.has_table([CLIENT, CLIENT.turned()])
    assert not owner.has_table([CLIENT, LOOPBACK])  # another dump that happens to use the same port


def test_an_unused_or_other_protocol_claims_nothing() -> None:
    udp = ConnectionFacts("udp", "established", "10.5.0.1", 5000, "10.5.0.2", 47672)
    assert not Owner([udp], moved=()).has_table([CLIENT])


@given(st.sets(FLOWS, min_size=1), st.sets(FLOWS, min_size=1))
def test_never_a_table_of_another_dump(mine: set[Flow], others: set[Flow]) -> None:
    connections = [
        ConnectionFacts("tcp", "established", each.source, each.source_port, each.destination, each.destination_port)
        for each in mine
    ]
    both = mine | {each.turned() for each in mine}
    assert Owner(connections, moved=()).has_table(others) == bool(both & others)
