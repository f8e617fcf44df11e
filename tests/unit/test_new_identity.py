"""A new identity: what is typed, which device is meant, what is refused, and what becomes of CRIU's images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from phaul.agent import requests
from phaul.cli.migrate import Typed, build_request
from phaul.criu.identity_images import NETDEV_MAGIC, UTSNS_MAGIC, set_host_name, set_macs
from phaul.criu.images import COMMON_MAGIC, ImageError, decode_records, encode_image
from phaul.errors import UsageError
from phaul.migration import new_identity
from phaul.migration.facts import (
    DestinationFacts,
    HostFacts,
    LinkFacts,
    MigrationRequest,
    NetworkFacts,
    NewMac,
    TaskFacts,
    WorkloadFacts,
)
from phaul.migration.new_identity import as_arriving, macs, parse_host_name, parse_new_mac, wanted_macs
from phaul.rpc.criu import images_pb2
from phaul.rpc.v1 import facts_pb2, peer_pb2

OLD, NEW, OTHER = "02:00:00:00:00:50", "02:00:00:00:00:51", "02:00:00:00:00:52"
VETH = LinkFacts("eth0", "veth", OLD, "vweb", "br0", 1500, ("10.0.0.50/24",), 7, 2)
MACVLAN = replace(VETH, name="eth1", kind="macvlan", mac=OTHER, outer="eno1", bridge="")
SLAVE = replace(MACVLAN, name="eth2", kind="ipvlan")
HERE, THERE = HostFacts("a", macs=("52:54:00:00:00:01",)), HostFacts("b", macs=("52:54:00:00:00:02",))
DESTINATION = DestinationFacts(THERE)


def workload(*links: LinkFacts, own: bool = True, named: bool = True) -> WorkloadFacts:
    facts = WorkloadFacts(1, (TaskFacts(1, 0, "x", (1,), 0, 1),), 0, (), (), has_own_network=own)
    return replace(facts, network=NetworkFacts(links) if own else None, has_own_host_name=named)


def asked(*new: NewMac, host_name: str = "") -> MigrationRequest:
    return MigrationRequest(1, "b", new_macs=new, host_name=host_name)


@pytest.mark.parametrize(
    ("text", "read"),
    [(NEW, NewMac("", NEW)), (f" eth0={NEW.upper()} ", NewMac("eth0", NEW)), (f"br0.7={NEW}", NewMac("br0.7", NEW))],
)
def test_a_mac_with_its_device(text: str, read: NewMac) -> None:
    assert parse_new_mac(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "", "eth0", "eth0=", "02:00:00:00:00", "02:00:00:00:00:5g", "02-00-00-00-00-50", f"={NEW}", f"a b={NEW}",
        "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "eth0=33:33:00:00:00:01",
    ],
)  # fmt: skip
def test_what_is_no_mac_of_one_device_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_new_mac(text)
    assert "02:00:00:00:00:50" in refusal.value.hint


@pytest.mark.parametrize("name", ["web", "web-2.example.org", "7", "a" * 63 + ".", "x" * 64, "-a", "a_b", "a..b", ""])
def test_host_names(name: str) -> None:
    good = name in ("web", "web-2.example.org", "7")
    if good:
        assert parse_host_name(f" {name} ") == name
    else:
        with pytest.raises(UsageError):
            parse_host_name(name)


def test_what_is_typed_reaches_the_agent_and_is_looked_at_there_again() -> None:
    message = build_request(7, "b", Typed(new_macs=(f"eth0={NEW}", OTHER), host_name="web2"))
    read = requests.migration_request(message)
    assert read.new_macs == (NewMac("eth0", NEW), NewMac("", OTHER))
    assert read.host_name == "web2"
    for bad in (
        facts_pb2.MigrationRequest(root_pid=7, destination="b", host_name="a\nb"),
        facts_pb2.MigrationRequest(root_pid=7, destination="b", new_macs=[facts_pb2.NewMac(mac="x")]),
        facts_pb2.MigrationRequest(root_pid=7, destination="b", new_macs=[facts_pb2.NewMac(device="a/b", mac=NEW)]),
    ):
        with pytest.raises(UsageError):
            requests.migration_request(bad)
    with pytest.raises(UsageError):
        requests.wanted_macs(peer_pb2.ObserveRequest(macs=["02:00"]))
    assert requests.wanted_macs(peer_pb2.ObserveRequest(macs=[NEW])) == (NEW,)


def test_the_only_device_need_not_be_named() -> None:
    assert macs(asked(NewMac("", NEW)), NetworkFacts((VETH,))) == {"eth0": NEW}
    assert macs(asked(NewMac("", NEW)), NetworkFacts((VETH, MACVLAN))) == {}
    assert macs(asked(NewMac("eth1", NEW)), NetworkFacts((VETH, MACVLAN))) == {"eth1": NEW}
    assert macs(asked(NewMac("", NEW)), None) == {}


def test_the_copy_arrives_with_it() -> None:
    arriving = as_arriving(asked(NewMac("eth1", NEW)), workload(VETH, MACVLAN))
    assert arriving.network == NetworkFacts((VETH, replace(MACVLAN, mac=NEW)))
    assert as_arriving(asked(), workload(own=False)).network is None


def codes(request: MigrationRequest, facts: WorkloadFacts, destination: DestinationFacts = DESTINATION) -> list[str]:
    return [each.code for each in new_identity.problems(request, facts, HERE, destination)]


def test_what_cannot_be_had_is_said() -> None:
    one, two = workload(VETH), workload(VETH, MACVLAN)
    assert codes(asked(NewMac("", NEW), host_name="web2"), one) == []
    assert codes(asked(), workload(own=False, named=False)) == []
    assert codes(asked(host_name="web2"), workload(VETH, named=False)) == ["host_name_of_host"]
    assert codes(asked(NewMac("", NEW)), workload(own=False)) == ["new_mac_host_network"]
    assert codes(asked(NewMac("", NEW)), two) == ["new_mac_device"]
    assert codes(asked(NewMac("eth7", NEW)), two) == ["new_mac_device"]
    assert codes(asked(NewMac("eth2", NEW)), workload(SLAVE)) == ["new_mac_device"]
    assert codes(asked(NewMac("", NEW)), workload(SLAVE)) == ["new_mac_device"]
    assert codes(asked(NewMac("", NEW), NewMac("eth0", OTHER)), one) == ["new_mac_device"]


def test_a_mac_that_somebody_has_is_refused() -> None:
    heard = replace(DESTINATION, heard_macs=(NEW,))
    one, two = workload(VETH), workload(VETH, MACVLAN)
    assert codes(asked(NewMac("", NEW)), one, heard) == ["mac_taken"]
    assert codes(asked(NewMac("", HERE.macs[0])), one) == ["mac_taken"]
    assert codes(asked(NewMac("eth0", OTHER)), two) == ["mac_taken"]
    # A device of the destination is told of by `own_network`, once.
    assert codes(asked(NewMac("", NEW)), one, replace(heard, host=replace(THERE, macs=(NEW,)))) == []
    # What it has already is its own, and heard with it; nobody is asked for it.
    assert codes(asked(NewMac("", OLD)), one, replace(DESTINATION, heard_macs=(OLD,))) == []
    assert wanted_macs(asked(NewMac("", OLD)), one) == ()
    assert wanted_macs(asked(NewMac("eth1", OLD), NewMac("eth0", OTHER)), two) == (OTHER, OLD)  # they change places
    assert codes(asked(NewMac("eth1", OLD), NewMac("eth0", OTHER)), two) == []


def test_devices_get_their_macs_and_keep_all_else(tmp_path: Path) -> None:
    # Type, number, MTU and flags, which are not declared here, as CRIU writes them.
    head = b"\x08\x02\x10\x07\x18\xdc\x0b\x20\x83\x20"
    magics = (COMMON_MAGIC, NETDEV_MAGIC)
    devices = [
        images_pb2.NetworkDevice.FromString(
            head + images_pb2.NetworkDevice(name=name, address=address).SerializeToString()
        )
        for name, address in (("lo", bytes(6)), ("eth0", b"\x02" * 6), ("eth1", b"\x02" * 6))
    ]
    path = tmp_path / "netdev-9.img"
    path.write_bytes(encode_image(magics, devices))
    set_macs(tmp_path, {"eth0": NEW})
    after = list(decode_records(path.read_bytes(), magics))
    read = [images_pb2.NetworkDevice.FromString(each) for each in after]
    assert [each.address.hex(":") for each in read] == [":".join(["00"] * 6), NEW, ":".join(["02"] * 6)]
    assert [each.name for each in read] == ["lo", "eth0", "eth1"]
    assert all(head in each for each in after)
    with pytest.raises(ImageError, match="eth7"):
        set_macs(tmp_path, {"eth7": NEW})


def test_the_host_name_is_another_and_the_domain_the_same(tmp_path: Path) -> None:
    magics = (COMMON_MAGIC, UTSNS_MAGIC)
    domain = b"\x12\x06(none)"
    record = images_pb2.HostNames.FromString(images_pb2.HostNames(nodename="web").SerializeToString() + domain)
    path = tmp_path / "utsns-11.img"
    path.write_bytes(encode_image(magics, [record]))
    set_host_name(tmp_path, "")
    assert b"web" in path.read_bytes()
    set_host_name(tmp_path, "web2.example")
    (after,) = decode_records(path.read_bytes(), magics)
    assert images_pb2.HostNames.FromString(after).nodename == "web2.example"
    assert domain in after
    path.unlink()
    with pytest.raises(ImageError, match="0 images"):
        set_host_name(tmp_path, "web2")
