"""Addresses, fence and announcements on real kernels' interfaces: two hosts and a client as network namespaces.

No CRIU here. Judged from outside: by what the client's connections, its neighbour table and its wire see.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator

import pytest

from tests.lab.network_hosts import Host, WorkerError, three_hosts

FOUR = ["192.0.2.50", 24, "eth0"]
SIX = ["2001:db8::50", 64, "eth0"]
PORT = 5000
CLOSED_PORT = 5001
# A microbenchmark's bound for a machine that is busy: lifting takes 0.3 ms and announcing 0.3 ms, one grace period
# of the kernel that either might wait for by mistake, 4 to 20 ms.
QUICK_SECONDS = 0.004


@pytest.fixture
def hosts() -> Iterator[dict[str, Host]]:
    with three_hosts() as hosts:
        yield hosts


@pytest.fixture(params=[FOUR, SIX], ids=["ipv4", "ipv6"])
def address(request: pytest.FixtureRequest) -> list[object]:
    value: list[object] = request.param
    return value


def answers(frames: list[str], address: str) -> list[str]:
    """Say which of the frames that the client got say anything for `address`."""
    packed = ipaddress.ip_address(address).packed.hex()
    found: list[str] = []
    for frame in frames:
        kind, payload = frame[24:28], frame[28:]
        if kind == "0806" and payload[28:36] == packed:
            found.append("arp")
        elif kind == "0800" and payload[24:32] == packed:
            found.append("ip")
        elif kind == "86dd" and payload[16:48] == packed:
            found.append("ip6")
        elif kind == "86dd" and payload[12:14] == "3a" and frame[108:110] == "88" and packed in frame[116:148]:
            found.append("advertisement")
    return found


def test_an_address_moves_and_the_client_follows_at_once(hosts: dict[str, Host], address: list[object]) -> None:
    a, b, client = hosts["a"], hosts["b"], hosts["client"]
    before = a.addresses(), b.addresses()
    for host in (a, b):
        host.ask("listen", address[0], PORT)
    a.network("add", [address])
    assert client.ask("probe", address[0], PORT) == "connected"
    assert client.neighbour(str(address[0]))[0] == a.mac

    a.network("fence", "m1", [address])
    b.network("fence", "m1", [address])
    b.network("add", [address])
    a.network("remove", [address])
    assert client.neighbour(str(address[0]))[0] == a.mac
    b.network("unfence", "m1")
    b.network("announce", [address])
    assert client.neighbour(str(address[0]))[0] == b.mac
    assert client.ask("probe", address[0], PORT) == "connected"
    a.network("unfence", "m1")

    b.network("remove", [address])
    assert (a.addresses(), b.addresses()) == before
    assert a.run("nft list ruleset") == b.run("nft list ruleset") == ""


def test_a_fenced_address_says_nothing(hosts: dict[str, Host], address: list[object]) -> None:
    a, client = hosts["a"], hosts["client"]
    ip = str(address[0])
    a.ask("listen", ip, PORT)
    a.network("fence", "m1", [address])
    client.ask("tap", "eth0")
    a.network("add", [address])
    # With nothing known of the address, and then with its MAC known as if it had been used a moment ago.
    for _ in range(2):
        assert client.ask("probe", ip, PORT) == "silence"
        assert client.ask("probe", ip, CLOSED_PORT) == "silence"
        client.run(f"ip neigh replace {ip} lladdr {a.mac} nud reachable dev eth0")
    assert answers(client.ask("taped"), ip) == []

    a.network("unfence", "m1")
    client.ask("tap", "eth0")
    client.run(f"ip neigh flush to {ip} dev eth0")
    assert client.ask("probe", ip, PORT) == "connected"
    assert client.ask("probe", ip, CLOSED_PORT) == "refused"
    assert set(answers(client.ask("taped"), ip)) == ({"ip6"} if ":" in ip else {"arp", "ip"})


def test_a_kernel_that_likes_to_notify_is_silent_behind_a_fence(hosts: dict[str, Host], address: list[object]) -> None:
    a, client = hosts["a"], hosts["client"]
    ip = str(address[0])
    a.run("sysctl -qw net.ipv4.conf.eth0.arp_notify=1 net.ipv6.conf.eth0.ndisc_notify=1")

    def said_on_a_new_mac() -> set[str]:
        client.ask("tap", "eth0")
        a.run("ip link set eth0 address 02:00:00:00:00:77; ip link set eth0 address 02:00:00:00:00:78")
        time.sleep(0.3)
        return set(answers(client.ask("taped"), ip))

    a.network("fence", "m1", [address])
    a.network("add", [address])
    assert said_on_a_new_mac() == set()
    a.network("unfence", "m1")
    assert said_on_a_new_mac() == ({"ip6"} if ":" in ip else {"arp"})


def test_a_proxy_does_not_answer_for_a_fenced_address(hosts: dict[str, Host]) -> None:
    a, client = hosts["a"], hosts["client"]
    ip = str(SIX[0])
    a.run("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.conf.eth0.proxy_ndp=1 net.ipv6.neigh.eth0.proxy_delay=0")
    a.run(f"ip link add other type veth peer name rehto; ip link set other up; ip -6 route add {ip} dev other")
    a.run(f"ip -6 neigh add proxy {ip} dev eth0")
    a.network("fence", "m1", [SIX])
    client.ask("probe", ip, PORT)
    assert client.neighbour(ip)[0] == ""
    a.network("unfence", "m1")
    client.run(f"ip neigh flush to {ip} dev eth0")
    client.ask("probe", ip, PORT)
    assert client.neighbour(ip)[0] == a.mac


def test_of_two_holders_only_the_one_without_a_fence_answers(hosts: dict[str, Host], address: list[object]) -> None:
    a, b, client = hosts["a"], hosts["b"], hosts["client"]
    ip = str(address[0])
    b.network("fence", "m1", [address])
    for host in (a, b):
        host.ask("listen", ip, PORT)
        host.network("add", [address])
    for _ in range(5):
        client.run(f"ip neigh flush to {ip} dev eth0")
        assert client.ask("probe", ip, PORT) == "connected"
        assert client.neighbour(ip)[0] == a.mac


def test_a_fence_has_no_effect_where_its_address_is_not(hosts: dict[str, Host], address: list[object]) -> None:
    a, b, client = hosts["a"], hosts["b"], hosts["client"]
    a.network("add", [address])
    a.ask("listen", address[0], PORT)
    b.network("fence", "m1", [address])
    assert b.ask("probe", address[0], PORT) == "connected"
    assert client.ask("probe", address[0], PORT) == "connected"


def test_forwarded_packets_pass_a_fence(hosts: dict[str, Host]) -> None:
    a, b, client = hosts["a"], hosts["b"], hosts["client"]
    a.run("ip addr add 198.51.100.7/32 dev lo; ip route add 203.0.113.0/24 via 192.0.2.2")
    client.run("ip addr add 203.0.113.3/32 dev lo; ip route add 198.51.100.7 via 192.0.2.2 src 203.0.113.3")
    b.run("sysctl -qw net.ipv4.ip_forward=1; ip route add 198.51.100.7 via 192.0.2.1")
    b.run("ip route add 203.0.113.0/24 via 192.0.2.3")
    a.ask("listen", "198.51.100.7", PORT)
    b.network("fence", "m1", [["198.51.100.7", 32, "eth0"]])
    assert client.ask("probe", "198.51.100.7", PORT) == "connected"


def test_a_connection_outlives_a_fence(hosts: dict[str, Host], address: list[object]) -> None:
    a, client = hosts["a"], hosts["client"]
    a.network("add", [address])
    a.ask("listen", address[0], PORT)
    number = client.ask("connect", address[0], PORT)
    accepted = a.ask("accept")
    a.network("fence", "m1", [address])
    client.ask("send", number, "through the fence")
    a.ask("send", accepted, "back again")
    assert a.ask("receive", accepted, 0.5) == ""
    assert client.ask("receive", number, 0.1) == ""
    a.network("unfence", "m1")
    assert a.ask("receive", accepted, 5) == "through the fence"
    assert client.ask("receive", number, 5) == "back again"


def test_fences_of_two_migrations_are_apart_and_each_can_be_repeated(hosts: dict[str, Host]) -> None:
    a = hosts["a"]
    a.network("fence", "m1", [FOUR])
    a.network("fence", "m1", [FOUR, SIX])
    a.network("fence", "m2", [SIX])
    assert a.network("fences") == ["m1", "m2"]
    assert a.run("nft list table inet phaul-m1").count("192.0.2.50") == 3
    a.network("unfence", "m1")
    a.network("unfence", "m1")
    assert a.network("fences") == ["m2"]
    a.network("unfence", "m2")
    assert a.run("nft list ruleset") == ""


def test_lifting_and_announcing_do_not_wait_for_the_kernel(hosts: dict[str, Host]) -> None:
    a = hosts["a"]
    a.network("add", [FOUR, SIX])
    lifting: list[float] = []
    announcing: list[float] = []
    for _ in range(5):
        a.network("fence", "m1", [FOUR, SIX])
        time.sleep(0.1)  # as between the freeze and RESUME: the kernel is through with the transaction before
        lifting.append(a.ask("network", "unfence", "m1")["seconds"])
        announcing.append(a.ask("network", "announce", [FOUR, SIX])["seconds"])
    assert min(lifting) < QUICK_SECONDS
    assert min(announcing) < QUICK_SECONDS


@pytest.mark.parametrize("settable", [True, False], ids=["promoted", "put back"])
def test_other_addresses_of_the_subnet_stay(hosts: dict[str, Host], settable: bool) -> None:
    a = hosts["a"]
    a.run("ip addr flush dev eth0 scope global; ip addr add 192.0.2.50/24 brd + dev eth0 label eth0:w")
    a.run("ip addr add 192.0.2.51/24 dev eth0 label eth0:x; ip addr add 192.0.2.52/24 brd + dev eth0")
    a.run("ip route add default via 192.0.2.3")
    setting = "/proc/sys/net/ipv4/conf/eth0/promote_secondaries"
    if not settable:
        a.ask("deny_settings")
    a.network("remove", [FOUR])
    shown = a.addresses()
    assert "192.0.2.50" not in shown
    assert "192.0.2.51/24 scope global eth0:x" in shown.replace("secondary ", "")
    assert "192.0.2.52/24 brd 192.0.2.255 scope global" in shown.replace("secondary ", "")
    assert a.run(f"cat {setting}") == "0\n"
    if settable:
        assert "default via 192.0.2.3" in a.run("ip route")

    a.network("add", [FOUR])
    assert "192.0.2.50/24 brd 192.0.2.255 scope global secondary eth0:w" in a.addresses()


def test_adding_is_all_or_none(hosts: dict[str, Host]) -> None:
    a = hosts["a"]
    before = a.addresses()
    with pytest.raises(WorkerError, match="nodevice") as caught:
        a.network("add", [FOUR, SIX, ["192.0.2.60", 24, "nodevice"]])
    assert caught.value.code == "SwitchoverError"
    assert a.addresses() == before


def test_adding_and_removing_can_be_repeated(hosts: dict[str, Host]) -> None:
    a = hosts["a"]
    before = a.addresses()
    for _ in range(2):
        a.network("add", [FOUR, SIX])
    assert {"192.0.2.50/24@eth0", "2001:db8::50/64@eth0"} <= set(a.network("addresses"))
    assert {"127.0.0.1", "::1", "192.0.2.50"} <= set(a.network("local_addresses"))
    assert "tentative" not in a.addresses()
    for _ in range(2):
        a.network("remove", [FOUR, SIX])
    assert a.addresses() == before


CRIU_TABLE = """\
table inet CRIU-{name} {{
	set conns4 {{
		type ipv4_addr . inet_service . ipv4_addr . inet_service
		elements = {{ 192.0.2.3 . 40000 . {address} . 5000, {address} . 5000 . 192.0.2.3 . 40000,
			127.0.0.1 . 40001 . 127.0.0.1 . 5001, 127.0.0.1 . 5001 . 127.0.0.1 . 40001 }}
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		meta mark 0xc114 accept
		ip saddr . tcp sport . ip daddr . tcp dport @conns4 drop
	}}
}}
"""


def test_locks_of_one_tree_go_and_those_of_another_stay(hosts: dict[str, Host]) -> None:
    a = hosts["a"]
    for name, address in (("8f323d75-5124-49f1-a5", "192.0.2.50"), ("00a9b960-7ac2-41ba-bc", "192.0.2.51")):
        a.run("nft -f -", stdin=CRIU_TABLE.format(name=name, address=address))
    a.run("nft add table inet CRIU-4711; nft add table inet CRIU-4712; nft add table inet phaul-m1")
    a.network("remove_engine_locks", 4711)
    assert "CRIU-4711" not in a.run("nft list tables")
    assert a.run("nft list tables").count("CRIU") == 3
    a.network("remove_engine_locks", 4711, [["tcp", "established", "192.0.2.50", 5000, "192.0.2.3", 40000]])
    assert a.run("nft list tables").split("\n")[:-1] == [
        "table inet CRIU-00a9b960-7ac2-41ba-bc",
        "table inet CRIU-4712",
        "table inet phaul-m1",
    ]


def test_locks_at_an_address_that_moved_away_go(hosts: dict[str, Host]) -> None:
    a = hosts["a"]
    a.network("add", [FOUR])
    a.run("nft -f -", stdin=CRIU_TABLE.format(name="8f323d75-5124-49f1-a5", address="192.0.2.50"))
    a.network("remove_engine_locks", 4711)
    assert "CRIU" in a.run("nft list tables")
    a.network("remove", [FOUR])
    a.network("remove_engine_locks", 4711)
    assert a.run("nft list ruleset") == ""
