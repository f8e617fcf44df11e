"""The link between the two hosts of a lab: cut, healed, slowed. The client reaches both hosts all the time.

Cut is done at the lab's bridge, so that nothing on the hosts tells of it but silence.
"""

from __future__ import annotations

import subprocess

from phaul.lab.cluster import SWITCH, Lab
from phaul.lab.host import Host
from phaul.lab.records import ProcessRecord

DEVICE = "eth0"
SLOW = "1mbit"
BURST = "32kb"
UNDER_WAY = "100mbit"  # 24 MiB take two seconds, so that there is a middle


def limit(host: Host, other: Host, rate: str, burst: str) -> None:
    """Let a host send to another only so fast; what goes to the client is let through. A second time only changes it.

    With a queue that is put up or taken away a packet to others goes now and then: 26 of 6,000 in 119 times (6.18).
    """
    change = f"class replace dev {DEVICE} parent 1: classid 1:4 htb rate {rate} burst {burst}"
    lines = [change]
    if "htb" not in host.exec(["tc", "qdisc", "show", "dev", DEVICE]).stdout:
        lines = [
            f"qdisc add dev {DEVICE} root handle 1: htb",  # what no filter names is not delayed
            change,
            f"filter add dev {DEVICE} parent 1: prio 1 protocol ip u32 match ip dst {other.ip4}/32 flowid 1:4",
            f"filter add dev {DEVICE} parent 1: prio 2 protocol ipv6 u32 match ip6 dst {other.ip6}/128 flowid 1:4",
        ]
    host.exec(["tc", "-batch", "-"], input="\n".join(lines) + "\n")


class Link:
    """Both directions between the hosts."""

    def __init__(self, lab: Lab) -> None:
        record = ProcessRecord.read(lab.directory / f"{SWITCH}.process")
        assert record is not None
        self._enter = ["nsenter", "--target", str(record.pid), "--net", "--"]
        self._hosts = tuple(lab.hosts.values())
        self._slowed: list[Host] = []
        self._is_cut = False

    def cut(self) -> None:
        """Let no packet through: isolated ports of a bridge do not see each other (bridge(8))."""
        self._isolate("on")

    def heal(self) -> None:
        """Let all through again, as fast as ever."""
        if self._is_cut:
            self._isolate("off")
        while self._slowed:
            self._slowed.pop().exec(["tc", "qdisc", "del", "dev", DEVICE, "root"])

    def slow(self, rate: str) -> None:
        """Let each host send to the other only so fast; what goes to the client is let through."""
        for host, other in zip(self._hosts, reversed(self._hosts), strict=True):
            limit(host, other, rate, BURST)
        self._slowed = list(self._hosts)

    def _isolate(self, state: str) -> None:
        for host in self._hosts:
            command = [*self._enter, "bridge", "link", "set", "dev", host.name, "isolated", state]
            subprocess.run(command, check=True, capture_output=True)
        self._is_cut = state == "on"
