"""Network namespaces of workloads on the hosts of a lab, connected as people connect them, for test_own_network.py.

The hosts' eth0 becomes a port of a bridge br0, which takes over its addresses, as on a host that runs containers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from phaul.lab.host import Host

from .stage import DEVICE, Stage

BRIDGE = "br0"
NUMBERS = itertools.count(150)  # each test has addresses and a MAC of its own, as those of `stage.FLOATING`

_BRIDGE_SCRIPT = f"""set -e
if ip link show {BRIDGE} >/dev/null 2>&1; then exit; fi
four=$(ip -o -4 addr show dev {DEVICE} | awk '{{print $4}}')
six=$(ip -o -6 addr show dev {DEVICE} scope global | awk '{{print $4}}')
ip link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0
ip link set {BRIDGE} address $(cat /sys/class/net/{DEVICE}/address)
ip addr flush dev {DEVICE}
ip link set {DEVICE} master {BRIDGE}
ip link set {BRIDGE} up
ip addr add $four dev {BRIDGE}
ip addr add $six dev {BRIDGE} nodad
ip netns add first
ip netns delete first  # /run/netns stays
"""


def on_bridges(stage: Stage) -> None:
    """Put the hosts' devices and addresses on bridges, unless that was done; so they shall be at the end as well."""
    for host in (stage.a, stage.b):
        host.exec(["sh", "-c", _BRIDGE_SCRIPT])
    stage.look_again()


class Box:
    """A named network namespace on a host. Owns it, wherever it is, until `close`."""

    def __init__(self, stage: Stage, kind: str = "veth", name: str = "", *, addresses: Sequence[str] = ()) -> None:
        number = next(NUMBERS)
        self._stage = stage
        self.name = name or f"box{number}"
        self.outer = f"v{number}"
        self.ip4, self.ip6 = f"10.77.0.{number}", f"fd00:77::{number}"
        self.mac = f"02:00:00:77:00:{number:02x}"
        if kind == "veth":
            connect = [
                f"ip link add {self.outer} type veth peer name eth0 address {self.mac} netns {self.name}",
                f"ip link set {self.outer} master {BRIDGE} up",
            ]
        else:
            connect = [
                # A number that no host has: CRIU makes it again under that.
                f"ip link add link {BRIDGE} name {self.outer} index {4000 + number} type {kind} mode bridge",
                f"ip link set {self.outer} netns {self.name}",
                f"ip -n {self.name} link set {self.outer} name eth0 address {self.mac}",
            ]
        lines = [
            "set -e",
            f"ip netns add {self.name}",
            *connect,
            f"ip -n {self.name} link set lo up",
            f"ip -n {self.name} addr add {self.ip4}/24 dev eth0",
            # Without nodad, as people write it: phaul has to see to it that this costs nothing.
            f"ip -n {self.name} addr add {self.ip6}/64 dev eth0",
            *(f"ip -n {self.name} addr add {each} dev eth0" for each in addresses),
            f"ip -n {self.name} link set eth0 up",
            f"ip -n {self.name} route add 192.0.2.0/24 via {stage.client.ip4}",
        ]
        stage.a.exec(["sh", "-c", "\n".join(lines)])

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spawn(self, *argv: str) -> int:
        """Start a workload in it on a; give its PID."""
        return self._stage.spawn(["nsenter", f"--net=/run/netns/{self.name}", *argv])

    def serve(self, port: int, *arguments: str) -> int:
        """Start the server of programs/ at its addresses, and wait until it listens."""
        client, listen = self._stage.client.ip4, ["--listen", "0.0.0.0", str(port), "--listen", "::", str(port)]
        pid = self.spawn("python3", "-m", "witness.server", client, "7000", *listen, *arguments)
        self._stage.witness.wait_ticks(pid)
        return pid

    def shown(self, host: Host, *words: str) -> str:
        """Run ``ip`` in it."""
        return host.exec(["ip", "-n", self.name, *words]).stdout

    def sysctl(self, host: Host, name: str, value: str = "") -> str:
        """Read a setting of it, or write it."""
        wanted = f"{name}={value}" if value else name
        enter = ["nsenter", f"--net=/run/netns/{self.name}", "sysctl", "-n"]
        return host.exec([*enter, *(["-w"] if value else []), wanted]).stdout.strip()

    def close(self) -> None:
        """Remove it from both hosts."""
        self._stage.clear_workloads()
        for host in (self._stage.a, self._stage.b):
            host.exec(["ip", "netns", "del", self.name], check=False)
            host.exec(["ip", "link", "del", self.outer], check=False)
