"""What the network is asked before an address moves, byte by byte, and who is believed to have it."""

from __future__ import annotations

import ipaddress

from phaul.migration.address_rules import claim_problems
from phaul.migration.facts import ClaimFacts, HostFacts, LinkFacts, NetworkFacts, WorkloadFacts
from phaul.network.claims import arp_probe, neighbour_solicitation, read_claim
from phaul.network.neighbours import ARP_REPLY, gratuitous_arp, neighbour_advertisement

MAC = bytes.fromhex("525400770001")
FOUR, SIX = ipaddress.IPv4Address("192.0.2.1"), ipaddress.IPv6Address("2001:db8::12:3456")


def test_the_questions() -> None:
    assert arp_probe(MAC, FOUR).hex() == (
        "ffffffffffff525400770001" "0806" "0001080006040001" "525400770001" "00000000" "000000000000" "c0000201"
    )  # fmt: skip
    asked = neighbour_solicitation(MAC, SIX)
    assert asked[:14].hex() == "3333ff123456" "525400770001" "86dd"  # fmt: skip
    assert asked[22:38] == bytes(16)
    assert str(ipaddress.IPv6Address(asked[38:54])) == "ff02::1:ff12:3456"
    assert asked[54:56].hex() == "8700"
    assert asked[62:] == SIX.packed
    assert len(asked) == 78


def test_the_answers() -> None:
    assert read_claim(gratuitous_arp(MAC, FOUR, ARP_REPLY)) == ClaimFacts("192.0.2.1", "52:54:00:77:00:01")
    assert read_claim(neighbour_advertisement(MAC, SIX)) == ClaimFacts("2001:db8::12:3456", "52:54:00:77:00:01")
    assert read_claim(arp_probe(MAC, FOUR)) is None  # who asks claims nothing
    assert read_claim(neighbour_solicitation(MAC, SIX)) is None
    for length in range(78):  # its option is not needed
        assert read_claim(neighbour_advertisement(MAC, SIX)[:length]) is None


def test_only_a_stranger_is_a_duplicate() -> None:
    source, destination = HostFacts(macs=("02:00:00:00:00:01",)), HostFacts(macs=("02:00:00:00:00:02",))
    network = NetworkFacts((LinkFacts("eth0", "veth", "02:00:00:00:00:03", "v"),))
    workload = WorkloadFacts(1, (), 1, (), (), network=network)
    claims = tuple(ClaimFacts("192.0.2.1", f"02:00:00:00:00:0{number}") for number in (1, 2, 3, 4))
    (problem,) = claim_problems(claims, workload, source, destination)
    assert problem.code == "address_claimed"
    assert "02:00:00:00:00:04" in problem.message
