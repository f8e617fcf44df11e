"""The wires of a lab: a bridge in a network namespace of its own, and a veth from it into each host.

Called by `phaul.lab.cluster`. All links are in the lab's namespaces, so that labs of any number can be up at once with
the same names and addresses, and nothing has to be removed: links die with their namespaces. Never makes a link or an
address in the machine's own namespace.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from phaul.lab import commands
from phaul.lab.records import HostDescription

NETWORK4 = ipaddress.IPv4Network("10.77.0.0/24")
NETWORK6 = ipaddress.IPv6Network("fd00:77::/64")
FIRST_HOST = 11
CLIENT = 20
FIRST_FLOATING = 100  # from here on addresses are free for workloads to bring along
INTERFACE = "eth0"

# A second bridge, on which virtual machines are told what to do: no test cuts or measures it.
MANAGEMENT = ipaddress.IPv4Network("10.78.0.0/24")
# What the initial file system of a virtual machine puts before the number of each host.
PREFIXES = {"network4": "10.77.0", "network6": "fd00:77", "management": "10.78.0"}

# A lab host's first PID; the distance is far more than a test starts. The kernel's default limit is 32768.
FIRST_PID = 10_000
PID_DISTANCE = 5_000


def describe(names: Sequence[str], client: str) -> tuple[HostDescription, ...]:
    """The hosts with their addresses, the client last."""
    numbers = [*range(FIRST_HOST, FIRST_HOST + len(names)), CLIENT]
    return tuple(
        HostDescription(
            name=name,
            ip4=str(NETWORK4[number]),
            # The same digits as in IPv4, which people read more easily than their value: fd00:77::11.
            ip6=str(NETWORK6[int(str(number), 16)]),
            # Fixed: a host that comes again under its address must not meet its old MAC in a neighbour's table.
            mac=f"52:54:00:77:00:{number:02x}",
            first_pid=5_000 if name == client else FIRST_PID + PID_DISTANCE * index,
        )
        for index, (name, number) in enumerate(zip([*names, client], numbers, strict=True))
    )


def floating_address4(index: int) -> str:
    """The IPv4 address number `index` of those that no host has."""
    return str(NETWORK4[FIRST_FLOATING + index])


def floating_address6(index: int) -> str:
    """The IPv6 address number `index` of those that no host has."""
    return str(NETWORK6[int(str(FIRST_FLOATING + index), 16)])


def hosts_file(hosts: Sequence[HostDescription]) -> str:
    """The text of /etc/hosts in every host."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {host.name}" for host in hosts for address in (host.ip4, host.ip6)]
    return "\n".join(lines)


def connect(switch_pid: int, hosts: Sequence[tuple[HostDescription, int]]) -> None:
    """Make the bridge in the namespace of `switch_pid`, and a configured `eth0` in that of each host's process."""
    lines = [
        "link set lo up",
        # Without snooping, neighbour discovery works although nobody on this bridge asks for group memberships.
        "link add bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        "link set bridge up",
    ]
    for host, pid in hosts:
        lines += [
            f"link add name {host.name} type veth peer name {INTERFACE} address {host.mac} netns {pid}",
            f"link set dev {host.name} master bridge up",
        ]
    _batch(switch_pid, lines)
    for host, pid in hosts:
        _batch(
            pid,
            [
                "link set lo up",
                f"address add {host.ip4}/{NETWORK4.prefixlen} broadcast + dev {INTERFACE}",
                f"address add {host.ip6}/{NETWORK6.prefixlen} dev {INTERFACE} nodad",
                f"link set {INTERFACE} up",
            ],
        )


def connect_machines(switch_pid: int, hosts: Sequence[HostDescription]) -> None:
    """Make the links for virtual machines: one a host on the bridge (see `connect`), one on the management bridge."""
    lines = [
        "link add management type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        f"address add {MANAGEMENT[1]}/{MANAGEMENT.prefixlen} dev management",
        "link set management up",
    ]
    for host in hosts:
        for device, bridge in ((tap(host.name), "bridge"), (management_tap(host.name), "management")):
            lines += [f"tuntap add dev {device} mode tap", f"link set dev {device} master {bridge} up"]
    _batch(switch_pid, lines)


def tap(host: str) -> str:
    """The device at the bridge's end of a virtual machine's eth0; called like that of a namespace host."""
    return host


def management_tap(host: str) -> str:
    """The device at the other end of a virtual machine's eth1."""
    return f"{host}-m"


def management_mac(mac: str) -> str:
    """The MAC of a virtual machine's eth1."""
    return mac.replace(":77:", ":78:")


def management_address(host: HostDescription) -> str:
    """The address of a virtual machine's eth1."""
    return str(MANAGEMENT[number(host)])


def number(host: HostDescription) -> int:
    """The last part of each of a host's addresses."""
    return int(host.ip4.rpartition(".")[2])


def _batch(pid: int, lines: list[str]) -> None:
    enter = [commands.find("nsenter"), "--target", str(pid), "--net", "--"]
    commands.run([*enter, commands.find("ip"), "-batch", "-"], input="\n".join(lines) + "\n")
