"""Network namespaces of workloads: what is in the way, what CRIU is told, and the fence around their links."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import pytest

from phaul.agent import requests
from phaul.agent.messages import to_message
from phaul.errors import UsageError
from phaul.migration.facts import (
    AddressRequest,
    ConnectionFacts,
    DestinationFacts,
    HostFacts,
    LinkFacts,
    MigrationRequest,
    NetworkFacts,
    Problem,
    SettingFacts,
    TaskFacts,
    WorkloadFacts,
)
from phaul.migration.own_network import (
    at_destination,
    external,
    is_fenced,
    is_left_out,
    network_from,
    oddity,
    own_network_problems,
)
from phaul.migration.plan import fenced
from phaul.network.ipvlan import mode_of
from phaul.network.link_fence import fence_rules, nobodys_mac
from phaul.network.own_network import HostLink, _judge
from phaul.rpc.v1 import facts_pb2, peer_pb2

VETH = LinkFacts("eth0", "veth", "02:00:00:00:00:50", "vweb", "br0", 1500, ("10.0.0.50/24",), 7, 2)
MACVLAN = LinkFacts("eth1", "macvlan", "02:00:00:00:00:51", "eno1", addresses=("10.0.0.51/24",), outer_index=2, index=3)
IPVLAN = LinkFacts(
    "eth0",
    "ipvlan",
    "02:00:00:00:00:52",
    "eno1",
    mtu=1500,
    addresses=("10.0.0.52/24", "fd00::52/64"),
    outer_index=2,
    index=7,
    mode="l2 bridge",
    link_local=("fe80::52/64",),
)
NETWORK = NetworkFacts((VETH, MACVLAN), ("web",), (SettingFacts("net/ipv4/tcp_fin_timeout", "7"),), inode=4026532000)
WORKLOAD = WorkloadFacts(4711, (TaskFacts(4711, 1, "web", (4711,), 0, 1),), 1, (), (), has_own_network=True)
THERE = HostFacts(host_name="b", devices=("lo", "eno1", "br0"), bridges=("br0",), macs=("52:54:00:00:00:01",))


def codes(
    network: NetworkFacts = NETWORK, there: HostFacts = THERE, local: tuple[str, ...] = (), **asked: object
) -> list[str]:
    request = MigrationRequest(4711, "b", **asked)  # type: ignore[arg-type]
    facts = DestinationFacts(there, local_addresses=local)
    return [each.code for each in own_network_problems(request, replace(WORKLOAD, network=network), facts)]


def test_what_is_in_the_way_on_the_destination() -> None:
    assert codes() == []
    assert codes(there=replace(THERE, bridges=())) == ["bridge_missing"]
    assert codes(there=replace(THERE, devices=("lo", "br0"))) == ["device_missing"]
    assert codes(there=replace(THERE, macs=(MACVLAN.mac,))) == ["mac_taken"]
    assert codes(there=replace(THERE, device_numbers=(1, VETH.index, MACVLAN.index))) == ["link_number_taken"]
    assert codes(there=replace(THERE, network_names=("db", "web"))) == ["network_name_taken"]
    assert codes(local=("127.0.0.1", "10.0.0.50")) == ["address_on_destination"]
    assert codes(addresses=(AddressRequest("10.0.0.50", 24),)) == ["address_of_own_network"]
    own = replace(NETWORK, problems=(Problem("link_kind", "", ""),))
    assert codes(own) == ["link_kind"]


def test_what_is_in_the_way_of_an_ipvlan() -> None:
    network = NetworkFacts((IPVLAN,))
    there = replace(THERE, features=("ipvlan",), device_mtus=(65536, 1500, 1500))
    assert codes(network, there) == []
    assert codes(network, replace(there, features=())) == ["ipvlan_missing"]
    assert codes(network, replace(there, devices=("lo", "br0"))) == ["device_missing"]
    assert codes(network, replace(there, device_mtus=(65536, 1499, 1500))) == ["link_mtu"]
    assert codes(network, replace(there, device_numbers=(IPVLAN.index,))) == []
    assert codes(NetworkFacts((IPVLAN, VETH)), there) == ["link_kind"]


def test_a_socket_may_use_an_address_that_goes_along() -> None:
    there = DestinationFacts(replace(THERE, features=("ipvlan",)))
    found = []
    for address in ("fe80::52%eth0", "fe80::5054:ff:fe00:1%eth0", "::", "10.0.0.52"):
        used = (ConnectionFacts("udp", "bound", address, 53, "", 0),)
        workload = replace(WORKLOAD, network=NetworkFacts((IPVLAN,)), connections=used)
        found.append([each.code for each in own_network_problems(MigrationRequest(4711, "b"), workload, there)])
    assert found == [[], ["link_local_in_use"], [], []]


def test_an_outer_end_whose_name_is_taken_gets_another_that_the_kernel_accepts() -> None:
    there = at_destination(NETWORK, THERE.devices, "20260801-120000-abcdef")
    assert there.links == NETWORK.links
    there = at_destination(NETWORK, (*THERE.devices, "vweb"), "20260801-120000-abcdef")
    assert there.links[0].outer not in ("vweb", *THERE.devices)
    assert len(there.links[0].outer) <= 15
    assert there.links[1] == MACVLAN
    assert external(there) == (f"veth[eth0]:{there.links[0].outer}", "macvlan[eth1]:eno1")
    assert external(None) == ()
    assert not is_left_out(there)
    assert is_left_out(NetworkFacts((IPVLAN,)))
    assert external(NetworkFacts((IPVLAN,))) == ()


def test_the_journal_keeps_a_network() -> None:
    kept = json.loads(json.dumps(dataclasses.asdict(NETWORK)))
    assert network_from(kept) == NETWORK
    other = NetworkFacts((IPVLAN,))
    assert network_from(json.loads(json.dumps(dataclasses.asdict(other)))) == other
    assert network_from(None) is None


def test_only_veths_are_wholly_behind_the_fence() -> None:
    assert not is_fenced(NETWORK)
    assert not is_fenced(NetworkFacts((IPVLAN,)))
    assert is_fenced(NetworkFacts((VETH,)))
    assert fenced(replace(WORKLOAD, network=NetworkFacts((VETH,))), ())
    assert not fenced(replace(WORKLOAD, network=NETWORK), ())


def test_the_fence_closes_a_veth_and_picks_a_macvlan_by_its_mac() -> None:
    rules = fence_rules("m-1", NETWORK.links)
    assert rules.startswith("table netdev phaul-m-1\ndelete table netdev phaul-m-1\n")
    for hook, end in (("ingress", "daddr"), ("egress", "saddr")):
        assert f'hook {hook} device "vweb" priority -500; policy accept;\n\t\tdrop\n' in rules
        assert f'hook {hook} device "eno1" priority -500; policy accept;\n\t\tether {end} {MACVLAN.mac} drop' in rules


def test_the_fence_picks_an_ipvlan_by_its_addresses() -> None:
    rules = fence_rules("m-1", (IPVLAN,))
    arriving, _, leaving = rules.partition("hook egress")
    assert [line.strip() for line in arriving.splitlines() if line.endswith("drop")] == [
        "ip daddr { 10.0.0.52 } drop",
        "arp saddr ip != { 10.0.0.52 } arp daddr ip { 10.0.0.52 } drop",
        "ip6 daddr { fd00::52, fe80::52 } drop",
        "icmpv6 type nd-neighbor-solicit @th,64,128 "
        "{ 0xfd000000000000000000000000000052, 0xfe800000000000000000000000000052 } drop",
    ]
    assert [line.strip() for line in leaving.splitlines() if line.endswith("drop")] == [
        "ip saddr { 10.0.0.52 } drop",
        "arp saddr ip { 10.0.0.52 } drop",
        "ip6 saddr { fd00::52, fe80::52 } drop",
        "icmpv6 type nd-neighbor-advert @th,64,128 "
        "{ 0xfd000000000000000000000000000052, 0xfe800000000000000000000000000052 } drop",
    ]
    with pytest.raises(ValueError, match="drop"):
        fence_rules("m-1", (replace(IPVLAN, addresses=("10.0.0.52 } drop; ip daddr { 10.0.0.53/24",)),))


def test_the_fence_lets_addresses_through_that_nobody_has_any_more() -> None:
    leaving = ("10.0.0.50", "fd00::50")
    mac, target = nobodys_mac("m-1"), "0xfd000000000000000000000000000050"
    out = [
        f"{end} saddr {{ {each} }} ether saddr set {mac} accept"
        for end, each in zip(("ip", "ip6"), leaving, strict=True)
    ]
    out.insert(1, f"arp saddr ip {{ 10.0.0.50 }} ether saddr set {mac} accept")
    back = ["ip daddr { 10.0.0.50 } accept", "arp daddr ip { 10.0.0.50 } accept", "ip6 daddr { fd00::50 } accept"]
    back.append(f"icmpv6 type nd-neighbor-solicit @th,64,128 {{ {target} }} accept")
    for link, hooks in ((VETH, (out, back)), (MACVLAN, (back, out))):
        rules = fence_rules("m-1", (link,), leaving)
        for part, passing in zip(rules.split("hook ")[1:], hooks, strict=True):
            assert [line.strip() for line in part.splitlines()[1:-1] if "accept" in line] == passing
            assert part.splitlines()[len(passing) + 1].endswith("drop")  # all else, and after them
    rules = fence_rules("m-1", (replace(IPVLAN, link_local=()),), ("10.0.0.52",))
    assert "10.0.0.52" not in rules
    assert "fd00::52" in rules


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (NetworkFacts((IPVLAN,)), ""),
        (NetworkFacts((replace(IPVLAN, mode="l2 netns evil"),)), "evil"),
        (NETWORK, ""),
        (NetworkFacts((replace(VETH, kind="tun"),)), "tun"),
        (NetworkFacts((replace(VETH, outer='x" drop'),)), "drop"),
        (NetworkFacts((replace(VETH, name="a]:b"),)), "a]:b"),
        (NetworkFacts((replace(MACVLAN, mac="02:00 accept"),)), "accept"),
        (NetworkFacts(names=("../host",)), "host"),
        (NetworkFacts(settings=(SettingFacts("kernel/core_pattern", "|/bin/sh"),)), "core_pattern"),
        (NetworkFacts(settings=(SettingFacts("net/../kernel/core_pattern", ""),)), "core_pattern"),
        (NetworkFacts(settings=(SettingFacts("net/ipv4/x", "y" * 5000),)), "ipv4"),
    ],
)
def test_a_peer_cannot_slip_in_anything(network: NetworkFacts, said: str) -> None:
    assert said in oddity(network)
    assert bool(oddity(network)) == bool(said)
    asked = peer_pb2.PrepareRequest(migration_id="ab" * 8, root_pid=4711, source_port=1)
    asked.network.CopyFrom(to_message(network, facts_pb2.NetworkFacts))
    if said:
        with pytest.raises(UsageError):
            requests.reservation(asked)
    else:
        assert requests.reservation(asked).network == network


BRIDGE = HostLink("br0", "bridge", "52:54:00:00:00:02", 1500, 3, 0, 0, -1)
TWIN = HostLink("vweb", "veth", "52:54:00:00:00:03", 1400, 7, 3, 2, 5)
BELOW = HostLink("eno1", "", "52:54:00:00:00:04", 1500, 2, 0, 0, -1)
INNER = {
    "ifname": "eth0",
    "ifindex": 2,
    "link_index": 7,
    "address": VETH.mac,
    "linkinfo": {"info_kind": "veth"},
    "addr_info": [
        {"local": "10.0.0.50", "prefixlen": 24, "scope": "global"},
        {"local": "fe80::1", "prefixlen": 64, "scope": "link"},
    ],
}


def judged(device: dict[str, object], *outside: HostLink) -> str:
    found = _judge(device, outside, 5, 0)
    return found.code if isinstance(found, Problem) else found.kind


def test_a_device_is_found_by_what_the_kernel_says_of_both_ends() -> None:
    assert _judge(INNER, (BELOW, BRIDGE, TWIN), 5, 0) == replace(VETH, mtu=1400)
    assert judged(INNER, BRIDGE, replace(TWIN, peer_namespace=4)) == "link_not_on_host"
    assert judged(INNER, BRIDGE, replace(TWIN, peer_index=3)) == "link_not_on_host"
    assert judged(INNER, BRIDGE, replace(TWIN, master=0)) == "link_without_bridge"
    assert judged(INNER, replace(BRIDGE, kind="bond"), TWIN) == "link_without_bridge"


@pytest.mark.parametrize(
    ("kind", "mode", "answer"),
    [
        ("macvlan", "bridge", "macvlan"),
        ("macvlan", "private", "macvlan"),
        ("macvlan", "passthru", "link_kind"),
        ("ipvlan", "l2", "link_kind"),
        ("", "", "link_kind"),
    ],
)
def test_kinds_of_devices(kind: str, mode: str, answer: str) -> None:
    device = {**INNER, "link_index": 2, "linkinfo": {"info_kind": kind, "info_data": {"mode": mode}}}
    assert judged(device, BELOW, BRIDGE) == answer


def test_an_ipvlan_stands_on_a_device_of_the_host() -> None:
    device = {
        **INNER,
        "ifindex": 7,
        "link_index": 2,
        "link_netnsid": 3,
        "mtu": 1500,
        "address": IPVLAN.mac,
        "linkinfo": {"info_kind": "ipvlan", "info_data": {"mode": "l2", "bridge": True}},
        "addr_info": [
            {"local": "10.0.0.52", "prefixlen": 24, "scope": "global"},
            {"local": "fd00::52", "prefixlen": 64, "scope": "global"},
            {"local": "fe80::52", "prefixlen": 64, "scope": "link"},
        ],
    }
    assert _judge(device, (BELOW, BRIDGE), 5, 3) == replace(IPVLAN, link_local=())
    elsewhere = _judge(device, (BELOW, BRIDGE), 5, 4)
    assert isinstance(elsewhere, Problem)
    assert elsewhere.code == "link_kind"
    del device["link_netnsid"]  # it stands on another device of its own namespace
    assert isinstance(_judge(device, (BELOW, BRIDGE), 5, -1), Problem)
    for flag in ("private", "vepa"):
        assert mode_of({"linkinfo": {"info_data": {"mode": "l3s", flag: True}}}) == f"l3s {flag}"


def test_a_macvlan_on_a_device_of_nobody() -> None:
    device = {**INNER, "link_index": 9, "linkinfo": {"info_kind": "macvlan", "info_data": {"mode": "bridge"}}}
    assert judged(device, BELOW, BRIDGE) == "link_kind"
