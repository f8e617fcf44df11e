"""Floating addresses on a bond and on a VLAN over it, which only the machines' own kernel has.

The two machines are joined by a cable (a VXLAN between them) that ends on each in a bridge; the two devices of the bond
are ports of that, and on the second machine so is a client in a network namespace.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from phaul.lab.cluster import Lab
from phaul.lab.vm_host import VirtualHost
from tests.lab.clients import Lines
from tests.lab.witness import Witness

from .machines import PATIENCE_SECONDS, Workload, migrate

PORT = 5000
ROUNDS = 3
ON_VLAN, ON_BOND = "192.168.7.50", "fd00:6::50"

_CABLE = """set -e
modprobe bonding max_bonds=0
modprobe -a 8021q vxlan bridge
ip link add cable type bridge stp_state 0 forward_delay 0 mcast_snooping 0
ip link add wire type vxlan id 7 local {own} remote {other} dstport 4789
ip link set wire master cable up
ip link set cable up
ip link add bond0 type bond mode active-backup miimon 100
for n in 1 2; do
    ip link add bonded$n mtu 1400 type veth peer name port$n mtu 1400
    ip link set port$n master cable up
    ip link set bonded$n master bond0
done
ip link set bond0 mtu 1400 up
ip link add link bond0 name bond0.7 type vlan id 7
ip link set bond0.7 up
ip addr add fd00:6::{number}/64 dev bond0 nodad
ip addr add 192.168.7.{number}/24 dev bond0.7
"""
_CLIENT = """set -e
ip netns add client
ip link add port3 mtu 1400 type veth peer name c0 mtu 1400 netns client
ip link set port3 master cable up
ip -n client link set c0 up
ip -n client link add link c0 name c0.7 type vlan id 7
ip -n client link set c0.7 up
ip -n client addr add fd00:6::3/64 dev c0 nodad
ip -n client addr add 192.168.7.3/24 dev c0.7
"""
_GONE = """ip netns del client
for device in bond0 bonded1 bonded2 port3 wire cable; do ip link del $device; done
"""


# Says a number on each connection, and after each echo the next; an emulated processor has time for no more.
TALK = """
import socket, sys, time
words = sys.argv[1:]
peers = [socket.create_connection((address, int(port)), 60) for address, port in zip(words[::2], words[1::2])]
streams = [peer.makefile("rw") for peer in peers]
for number in range(1_000_000):
    for stream in streams:
        stream.write(f"{number}\\n")
        stream.flush()
        echo = stream.readline()
        assert echo == f"{number}\\n", (number, echo)
    print(number, flush=True)
    time.sleep(0.2)
"""


class Talk:
    """A client on both addresses, in the network namespace of the second machine. Ended with the `with`."""

    def __init__(self, b: VirtualHost) -> None:
        where = [ON_VLAN, str(PORT), ON_BOND, str(PORT)]
        argv = ["ip", "netns", "exec", "client", "python3", "-c", TALK, *where]
        self._lines = Lines(b.popen(argv, stderr=subprocess.STDOUT))
        self.wait_more()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def wait_more(self) -> None:
        """Have a number echoed on each connection that was not said yet; the first line that is none is an error."""
        while not self._lines.empty():
            self._number(0)
        for _ in range(ROUNDS):
            self._number(PATIENCE_SECONDS)

    def _number(self, patience_seconds: float) -> None:
        line = self._lines.next(patience_seconds)
        assert line is not None, "the client ended"
        if not line.strip().isdigit():
            raise AssertionError(line + "".join(str(each) for each in iter(self._lines.next, None)))


@contextmanager
def cabled(a: VirtualHost, b: VirtualHost) -> Iterator[None]:
    """The cable, and what hangs on it."""
    try:
        for number, (host, other) in enumerate(((a, b), (b, a)), start=1):
            host.exec(["sh", "-c", _CABLE.format(own=host.ip4, other=other.ip4, number=number)])
        b.exec(["sh", "-c", _CLIENT])
        yield
    finally:
        for host in (a, b):
            host.exec(["sh", "-c", _GONE], check=False)


def known(b: VirtualHost, address: str) -> str:
    """The MAC by which the client knows an address."""
    words = b.exec(["ip", "-n", "client", "neigh", "show", "to", address]).stdout.split()
    return words[words.index("lladdr") + 1]


@pytest.mark.long
def test_connections_move_on_a_bond_and_on_a_vlan_over_it(machines: Lab, witness: Witness) -> None:
    a, b = machines.machines
    with cabled(a, b):
        a.exec(["ip", "addr", "add", f"{ON_VLAN}/24", "dev", "bond0.7"])
        a.exec(["ip", "addr", "add", f"{ON_BOND}/64", "dev", "bond0", "nodad"])
        greet = ["--greet", ON_VLAN, str(PORT), "--greet", ON_BOND, str(PORT), "--nap", "0.02"]
        with (
            Workload(machines, witness, a, "server", *greet) as workload,
            Talk(b) as talk,
        ):
            for source, destination, addresses in (
                (a, b, ("auto",)),
                (b, a, (f"{ON_VLAN}/24@bond0.7", f"{ON_BOND}/64@bond0")),
            ):
                with migrate(source, workload.pid, destination, *addresses) as move:
                    assert move.wait().status == 0, move.told()
                talk.wait_more()
                (mac,) = destination.exec(["cat", "/sys/class/net/bond0/address"]).stdout.split()
                for address, device in ((ON_VLAN, "bond0.7"), (ON_BOND, "bond0")):
                    assert known(b, address) == mac
                    assert address in destination.exec(["ip", "addr", "show", "dev", device]).stdout
                    assert address not in source.exec(["ip", "addr", "show"]).stdout
            workload.check(a, b, a)
