"""What the network is asked before an address moves, byte by byte, and who is believed to have it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterator

import pytest

from phaul.migration.address_rules import claim_problems
from phaul.migration.facts import AddressFacts, ClaimFacts, HostFacts, LinkFacts, NetworkFacts, WorkloadFacts
from phaul.network import claims as claims_module
from phaul.network.claims import arp_probe, neighbour_solicitation, read_claim
from phaul.network.neighbours import ARP_REPLY, ARPHRD_ETHER, gratuitous_arp, neighbour_advertisement

Ask = Callable[[], tuple[asyncio.Task[tuple[ClaimFacts, ...]], list[socket.socket]]]

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


class Device(socket.socket):
    """An end of a pair that passes for a packet socket: nothing ever comes."""

    def getsockname(self) -> tuple[str, int, int, int, bytes]:
        return "eth0", 0, 0, ARPHRD_ETHER, MAC


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Ask over such devices; gives their other ends, which are there once it was asked."""
    others: list[socket.socket] = []

    def opened(_device: str, _kind: int) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        others.append(theirs)
        ours.setblocking(False)
        return Device(fileno=ours.detach())

    monkeypatch.setattr(claims_module, "_open", opened)
    yield lambda: (asyncio.create_task(claims_module.claims([AddressFacts(str(FOUR), 24, "eth0")])), others)
    for each in others:
        each.close()


@pytest.mark.parametrize("given_up", [True, False])
async def test_nothing_is_left_of_a_question(ask: Ask, given_up: bool) -> None:
    """A question whose asker died left descriptors in the loop: sockets of their numbers were never heard again."""
    watched = set(asyncio.get_running_loop()._selector.get_map())  # type: ignore[attr-defined]
    asking, _ = ask()
    await asyncio.sleep(claims_module.LISTEN_SECONDS / 4)
    if given_up:
        asking.cancel()
    await asyncio.wait([asking])
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert set(asyncio.get_running_loop()._selector.get_map()) == watched  # type: ignore[attr-defined]


async def test_it_does_not_wait_for_more_than_all(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "LISTEN_SECONDS", 3600.0)
    asking, others = ask()
    while not others:
        await asyncio.sleep(0)
    others[0].send(gratuitous_arp(MAC, ipaddress.IPv4Address("192.0.2.9"), ARP_REPLY))
    await asyncio.sleep(2 * claims_module.LINGER_SECONDS)
    assert not asking.done()  # that is another address
    duplicates = [MAC, bytes.fromhex("525400770002")]
    for mac in duplicates:  # the second comes while it lingers
        others[0].send(gratuitous_arp(mac, FOUR, ARP_REPLY))
    assert {claim.mac for claim in await asking} == {mac.hex(":") for mac in duplicates}


def test_only_a_stranger_is_a_duplicate() -> None:
    source, destination = HostFacts(macs=("02:00:00:00:00:01",)), HostFacts(macs=("02:00:00:00:00:02",))
    network = NetworkFacts((LinkFacts("eth0", "veth", "02:00:00:00:00:03", "v"),))
    workload = WorkloadFacts(1, (), 1, (), (), network=network)
    claims = tuple(ClaimFacts("192.0.2.1", f"02:00:00:00:00:0{number}") for number in (1, 2, 3, 4))
    (problem,) = claim_problems(claims, workload, source, destination)
    assert problem.code == "address_claimed"
    assert "02:00:00:00:00:04" in problem.message
