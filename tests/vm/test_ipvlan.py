"""Workloads in a network namespace with an ipvlan, of which the kernel of these machines is the first that has one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from phaul.lab.cluster import Lab
from phaul.lab.vm_host import VirtualHost
from tests.lab.clients import Numbering
from tests.lab.witness import Witness, wait_until

from .machines import PATIENCE_SECONDS, Workload, migrate

NAME = "ipbox"
SIX = "fd00:77::192"
PORT = 5000
HOOK = "/etc/phaul/hooks.d/post-restore/50-fail"
MADE_OF_MAC = "fe80::5"  # the machines' begin with 52:54
SETTINGS = {
    "net.ipv4.tcp_keepalive_time": "77",
    "net.ipv4.conf.eth0.log_martians": "1",
    "net.ipv6.conf.eth0.mtu": "1400",
}
FILTER = (
    "table inet own {\n chain in {\n type filter hook input priority 0; policy accept;\n tcp dport 99 drop\n }\n}\n"
)


@contextmanager
def box(machines: Lab, mode: str, four: str) -> Iterator[None]:
    """The namespace on the first machine; at the end it is on none."""
    a, client = machines.machines[0], machines.client
    inside = [
        "link set lo up",
        f"addr add {four} dev eth0",
        f"addr add {SIX}/64 dev eth0",
        "link set eth0 mtu 1450 up",
        f"route add {client.ip4} dev eth0" if mode.startswith("l3") else "route add default via 10.77.0.1",
        f"route add 192.0.2.0/24 {'dev eth0' if mode.startswith('l3') else f'via {client.ip4}'} table 77",
        "rule add from 192.0.2.1 table 77",
    ]
    lines = [
        "set -e",
        f"ip netns add {NAME}",
        f"ip link add link eth0 name ipv0 type ipvlan mode {mode}",
        f"ip link set ipv0 netns {NAME}",
        f"ip -n {NAME} link set ipv0 name eth0",
        *(f"ip -n {NAME} {line}" for line in inside),
        *(f"nsenter --net=/run/netns/{NAME} sysctl -qw {name}={value}" for name, value in SETTINGS.items()),
    ]
    a.exec(["sh", "-c", "\n".join(lines)])
    a.exec(["nsenter", f"--net=/run/netns/{NAME}", "nft", "-f", "-"], input=FILTER)
    tentative = ["ip", "-n", NAME, "addr", "show", "tentative"]
    wait_until(lambda: not a.exec(tentative).stdout, "its addresses are not ready", PATIENCE_SECONDS)
    try:
        yield
    finally:
        for host in machines.machines:
            host.exec(["ip", "netns", "del", NAME], check=False)


def shown(host: VirtualHost) -> list[str]:
    """What the namespace holds, without the address that the kernel makes of the host's MAC."""
    commands = [
        "ip -o link show dev eth0 | sed 's/link.ether.*//; s/@if[0-9]*//'",
        "ip -o -d link show dev eth0 | grep -o 'ipvlan.*bridge'",
        "ip -o addr",
        *(f"ip -{family} {what}" for family in (4, 6) for what in ("route show table all", "rule")),
        "nft list ruleset",
        *(f"sysctl {name}" for name in SETTINGS),
    ]
    text = host.exec(["nsenter", f"--net=/run/netns/{NAME}", "sh", "-c", "\n".join(commands)]).stdout
    lines = (line.replace(" nodad", "").split() for line in text.splitlines() if MADE_OF_MAC not in line)
    return sorted(" ".join(line) for line in lines)


def exchanges(client: Numbering) -> None:
    """Wait until more has been acknowledged on each connection."""
    wanted = [account.acknowledged + 10 for account in client.brief()]

    def enough() -> bool:
        accounts = client.brief()
        assert not any(account.error for account in accounts), [account.error for account in accounts]
        return all(account.acknowledged >= want for account, want in zip(accounts, wanted, strict=True))

    wait_until(enough, "the blocks do not flow", PATIENCE_SECONDS)


def nothing_left(host: VirtualHost) -> None:
    """Of the workload's network there is no trace on a machine."""
    assert NAME not in host.exec(["ip", "netns", "list"]).stdout
    assert "ipvlan" not in host.exec(["ip", "-d", "link"]).stdout
    wait_until(lambda: "phaul" not in host.exec(["nft", "list", "tables"]).stdout, "a fence is left", PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "mode",
    [
        "l2 bridge",
        pytest.param("l3 bridge", marks=pytest.mark.long),
        pytest.param("l3s bridge", marks=pytest.mark.long),
    ],
)
def test_a_connected_workload_goes_there_and_back(machines: Lab, witness: Witness, mode: str) -> None:
    a, b = machines.machines
    routed = mode.startswith("l3")
    four = "10.99.0.5" if routed else "10.77.0.192"
    listen = ["--listen", "0.0.0.0", str(PORT), "--listen", "::", str(PORT)]
    places = [(four, PORT), (four, PORT)] if routed else [(four, PORT), (SIX, PORT)]
    with box(machines, mode, f"{four}/{32 if routed else 24}"):
        if routed:  # what leads to it is the network's own, here the client's
            machines.client.exec(["ip", "route", "replace", four, "via", a.ip4])
        before = shown(a)
        with (
            Workload(machines, witness, a, "server", *listen, network=NAME) as workload,
            Numbering(machines.client, *places) as client,
        ):
            exchanges(client)
            for source, destination in ((a, b), (b, a)):
                with migrate(source, workload.pid, destination) as move:
                    assert move.wait().status == 0, move.told()
                if routed:
                    machines.client.exec(["ip", "route", "replace", four, "via", destination.ip4])
                exchanges(client)
                assert workload.running_on() == [destination.name]
                assert set(shown(destination)) ^ set(before) == set()
                nothing_left(source)
            for account in client.finish():
                account.check(move.phase_at("freeze"), move.ended, finished=True)
        if routed:
            machines.client.exec(["ip", "route", "del", four])


@pytest.mark.long
def test_what_fails_leaves_it_as_it_was(machines: Lab, witness: Witness) -> None:
    a, b = machines.machines
    four = "10.77.0.192"
    listen = ["--listen", "0.0.0.0", str(PORT), "--listen", "::", str(PORT)]
    with (
        box(machines, "l2 bridge", f"{four}/24"),
        Workload(machines, witness, a, "server", *listen, network=NAME) as workload,
        Numbering(machines.client, (four, PORT), (SIX, PORT)) as client,
    ):
        exchanges(client)
        before = shown(a)
        b.exec(["ip", "netns", "add", "other"])
        try:
            b.exec(
                ["ip", "link", "add", "link", "eth0", "netns", "other", "name", "i0", "type", "ipvlan", "mode", "l3"]
            )
            with migrate(a, workload.pid, b) as move:
                assert move.wait().status != 0
            assert "of the mode l3 bridge stands on eth0" in move.error["message"]
        finally:
            b.exec(["ip", "netns", "del", "other"])
        hook = b.path(HOOK)
        hook.parent.mkdir(parents=True, exist_ok=True)
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)
        try:
            with migrate(a, workload.pid, b) as move:
                assert move.wait().status != 0
        finally:
            hook.unlink()
        assert "50-fail" in move.error["message"]
        exchanges(client)
        assert workload.running_on() == [a.name]
        assert set(shown(a)) ^ set(before) == set()
        nothing_left(b)
        assert "phaul" not in a.exec(["nft", "list", "tables"]).stdout
        for account in client.finish():
            account.check(move.phase_at("freeze"), move.ended, finished=True)
