"""What a network namespace holds, from one to another on this machine, without CRIU."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from phaul.criu.address_images import set_addresses
from phaul.errors import RestoreError
from phaul.migration.facts import LinkFacts, NetworkFacts, SettingFacts
from phaul.migration.readdressing import NewPlace, Readdressing
from phaul.network import own_content
from phaul.network.addresses import RT_SCOPE_LINK
from phaul.network.own_links import _remove_inner_ends, _write_settings
from phaul.network.waking import wake
from phaul.system.namespaces import inside, is_elsewhere, network_of, new_network, path_of

LINES = [
    "ip link set lo up",
    "ip addr add 10.9.0.1/24 dev eth0",
    "ip addr add 10.9.0.2/24 dev eth0 label eth0:two",
    "ip addr add fd09::1/64 dev eth0 nodad",
    "ip addr add fe80::9/64 dev eth0 nodad",
    "sysctl -qw net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.all.forwarding=1 net.ipv6.conf.default.hop_limit=33",
    "sysctl -qw net.ipv4.conf.eth0.forwarding=0",  # which that of all would change
    "ip link set eth0 up",
    "sysctl -qw net.ipv6.conf.eth0.mtu=1400",
    "ip route add default via 10.9.0.254",
    "ip -6 route add default via fd09::254",
    "ip route add 192.0.2.0/24 via 10.9.0.253 table 77",
    "ip route add blackhole 198.51.100.0/24",
    "ip rule add from 10.9.0.2 table 77",
    "ip -6 rule add from fd09::1 table 77",
    "ip rule del from all lookup default",
    'nft "add table inet own; add chain inet own in { type filter hook input priority 0; }"',
    "nft add rule inet own in tcp dport 99 drop",
]
SHOWN = [
    "ip -o link show lo up",
    "ip -o addr | grep -v fe80::ff | grep -v far",
    "ip route show table all",
    "ip -6 route show table all | grep -v 'local fe80'",
    "ip rule",
    "ip -6 rule",
    "nft list ruleset",
    "sysctl net.ipv4.conf.eth0.rp_filter net.ipv4.conf.eth0.forwarding net.ipv6.conf.default.hop_limit",
    "sysctl net.ipv6.conf.eth0.mtu",
]


@contextmanager
def namespace(mac: str) -> Iterator[int]:
    """Keep one with a device eth0 of the number 7; give the PID of who is in it."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE) as keeper:
        try:
            assert keeper.stdout is not None
            keeper.stdout.readline()
            peer = ["type", "veth", "peer", "name", "far"]
            run(keeper.pid, [f"ip link add eth0 index 7 address {mac} {' '.join(peer)}", "ip link set far up"])
            yield keeper.pid
        finally:
            keeper.kill()


def run(pid: int, lines: Sequence[str]) -> str:
    entered = ["nsenter", f"--net=/proc/{pid}/ns/net", "sh", "-ec", "\n".join(lines)]
    return subprocess.run(entered, check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture
def two() -> Iterator[tuple[int, int]]:
    """Two namespaces; the devices of a name have another MAC in each."""
    with ExitStack() as stack:
        yield (
            stack.enter_context(namespace("02:00:00:00:09:01")),
            stack.enter_context(namespace("02:00:00:00:09:02")),
        )


def make(pid: int, images: Path, *settings: SettingFacts) -> tuple[str, ...]:
    return asyncio.run(own_content.make(pid, NetworkFacts(settings=settings), images, _write_settings))


def test_it_is_there_as_it_was_here(two: tuple[int, int], tmp_path: Path) -> None:
    here, there = two
    run(here, LINES)
    asyncio.run(own_content.save(here, tmp_path))
    assert make(there, tmp_path, SettingFacts("net/ipv4/tcp_fin_timeout", "7")) == ()
    shown = [run(pid, SHOWN).splitlines() for pid in two]
    assert [line for line in shown[1] if line not in shown[0]] == []
    assert [line for line in shown[0] if line not in shown[1]] == []
    assert run(there, ["sysctl -n net.ipv4.tcp_fin_timeout"]) == "7\n"
    made_of_mac = ["fe80::ff:fe00:901", "fe80::ff:fe00:902"]
    listed = run(there, ["ip -6 addr"])
    assert [address in listed for address in made_of_mac] == [False, True]
    chosen = asyncio.run(own_content.moving_addresses(network_of(there)))
    assert [each.address for each in chosen if each.scope == RT_SCOPE_LINK] == ["fe80::9"]


MOVED = Readdressing(
    (
        NewPlace(7, "10.9.0.1/24", "10.10.0.1/16", alone=False),
        NewPlace(7, "fd09::1/64", "fd10::1/64"),
    ),
    (("10.9.0.254", "10.10.0.254"), ("fd09::254", "fd10::254")),
)
SHOWN_OF_MOVED = {
    "inet 10.10.0.1/16",
    "inet 10.9.0.2/24",
    "inet6 fd10::1/64",
    "default via 10.10.0.254 dev eth0",
    "10.10.0.0/16 dev eth0 proto kernel scope link src 10.10.0.1",
    "10.9.0.0/24 dev eth0 proto kernel scope link src 10.9.0.2",
    "192.0.2.0/24 via 10.9.0.253 dev eth0 table 77",
    "default via fd10::254 dev eth0",
    "fd10::/64 dev eth0 proto kernel",
    "from 10.9.0.2 lookup 77",
}


def check_moved(pid: int) -> None:
    """It has the new addresses, and all that follows from them, and nothing of the old ones."""
    shown = " ".join(run(pid, ["ip addr", "ip route show table all", "ip -6 route show table all"]).split())
    shown += " ".join(run(pid, ["ip rule"]).split())
    assert {each for each in SHOWN_OF_MOVED if each not in shown} == set()
    assert [each for each in ("10.9.0.1 ", "10.9.0.1/", "fd09:") if each in shown] == []


def test_it_is_there_with_other_addresses(two: tuple[int, int], tmp_path: Path) -> None:
    here, there = two
    run(here, LINES)
    asyncio.run(own_content.save(here, tmp_path, MOVED))
    assert make(there, tmp_path) == ()
    check_moved(there)
    assert "from fd10::1 lookup 77" in run(there, ["ip -6 rule"])


def test_images_of_iproute2_are_restored_with_other_addresses(two: tuple[int, int], tmp_path: Path) -> None:
    """What CRIU does by `ip`, and where it keeps what that wrote (criu/net.c, 4.2.1)."""
    here, there = two
    run(here, LINES)
    saved = {"ifaddr-9": "address save", "route-9": "route save", "route6-9": "-6 route save", "rule-9": "rule save"}
    for name, words in saved.items():
        run(here, [f"ip {words} > {tmp_path / name}.img"])
    set_addresses(tmp_path, MOVED)
    run(there, ["ip link set eth0 up"])
    for name, words in saved.items():
        run(there, ["ip rule flush"] if name.startswith("rule") else [])
        run(there, [f"ip {words.replace('save', 'restore')} < {tmp_path / name}.img"])
    run(there, ["ip route add 192.0.2.0/24 via 10.9.0.253 table 77"])  # CRIU carries the table main
    check_moved(there)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("net/ipv4/conf/all/forwarding", "kernel/core_pattern", "core_pattern"),
        ('"up": ["lo"', '"up": ["netns x"', "netns x"),
        ('"nft": "table', '"nft": "stable', "exited with 1"),
    ],
)
def test_what_another_host_sent_is_not_trusted(
    two: tuple[int, int], tmp_path: Path, before: str, after: str, said: str
) -> None:
    here, there = two
    run(here, LINES)
    asyncio.run(own_content.save(here, tmp_path))
    image = tmp_path / own_content.IMAGE
    text = image.read_text()
    assert before in text
    image.write_text(text.replace(before, after))
    with pytest.raises(RestoreError, match=said):
        make(there, tmp_path)


def test_whom_nobody_could_ask_for_is_asked_again(two: tuple[int, int]) -> None:
    """What is said before the link is there is lost; the kernel would ask again for the neighbour after a second."""
    here, _ = two
    known = "ip neigh add 10.9.0.78 lladdr 02:00:00:00:09:78 dev eth0 nud reachable"
    run(here, ["ip link set far down", "ip addr add 10.9.0.1/24 dev eth0", "ip link set eth0 up", known])
    inside(network_of(here), say_something)
    asked = "ip -4 neigh show dev eth0 nud all | cut -d ' ' -f 1"
    assert set(run(here, [asked]).split()) == {"10.9.0.77", "10.9.0.78"}
    run(here, ["ip link set far up"])
    inside(network_of(here), lambda: wake({7}))
    assert "state UP" in run(here, ["ip link show eth0"])
    assert run(here, [asked]).split() == ["10.9.0.78"]


def say_something() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.sendto(b"hello", ("10.9.0.77", 9))


def test_a_device_of_the_host_is_never_removed(two: tuple[int, int]) -> None:
    far = LinkFacts("far", "ipvlan", "02:00:00:00:09:01", "eth0")
    inside(network_of(two[0]), lambda: asyncio.run(_remove_inner_ends(network_of(two[0]), [far])))
    assert "far" in run(two[0], ["ip link"])
    asyncio.run(_remove_inner_ends(network_of(two[0]), [far]))
    assert "far" not in run(two[0], ["ip link"])


def test_a_namespace_that_nobody_is_in_goes_with_its_descriptor() -> None:
    descriptor = new_network()
    path = Path(path_of(descriptor))
    try:
        assert is_elsewhere(path)
        assert inside(path, socket.if_nameindex) == [(1, "lo")]
        assert not is_elsewhere(network_of(os.getpid()))
    finally:
        os.close(descriptor)
    assert not is_elsewhere(path)
