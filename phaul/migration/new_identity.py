"""Another MAC or host name for the copy: what is typed, whom it concerns, and what is in the way. Pure.

Called by `check`, `preflight` and the coordinator, and by the CLI (`parse_new_mac`, `parse_host_name`). Connections
care for neither: their ends are addresses, and the neighbours hear of a MAC as the copy is announced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from phaul.errors import UsageError
from phaul.migration import own_network
from phaul.migration.facts import (
    DestinationFacts,
    HostFacts,
    LinkFacts,
    MigrationRequest,
    NetworkFacts,
    NewMac,
    Problem,
    WorkloadFacts,
)
from phaul.migration.new_own_addresses import readdressed, readdressing
from phaul.migration.own_network import MAC, PLAIN_DEVICE

MAC_HINT = "Write [DEVICE=]MAC with the MAC of one device, for example 02:00:00:00:00:50 or eth0=02:00:00:00:00:50."
GROUP_BIT = 1  # of the first byte: a MAC of several (IEEE 802)
WITH_A_MAC = ("veth", "macvlan")  # other kinds have that of the device that they stand on
LONGEST_HOST_NAME = 64  # __NEW_UTS_LEN of linux/utsname.h
# Labels of RFC 1123, section 2.1.
HOST_NAME = re.compile(r"[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?(\.[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?)*")


def parse_new_mac(text: str) -> NewMac:
    """Read ``[DEVICE=]MAC`` as typed; `UsageError` with an example otherwise."""
    device, equals, typed = text.strip().rpartition("=")
    mac = typed.lower()
    if not MAC.fullmatch(mac) or (equals and not PLAIN_DEVICE.fullmatch(device)):
        raise UsageError(f"`{text}` is not a MAC for a network device.", hint=MAC_HINT)
    first = int(mac[:2], 16)
    if first & GROUP_BIT:
        raise UsageError(f"`{mac}` is the MAC of a group (multicast), not of one device.", hint=MAC_HINT)
    if not int(mac.replace(":", ""), 16):
        raise UsageError(f"`{mac}` is nobody's MAC.", hint=MAC_HINT)
    return NewMac(device, mac)


def parse_host_name(text: str) -> str:
    """Read a host name as typed; `UsageError` where it cannot be one."""
    name = text.strip()
    if len(name) > LONGEST_HOST_NAME or not HOST_NAME.fullmatch(name):
        raise UsageError(
            f"`{text}` cannot be a host name.",
            hint=f"At most {LONGEST_HOST_NAME} letters, digits and hyphens, in parts with dots between them.",
        )
    return name


def macs(request: MigrationRequest, network: NetworkFacts | None) -> dict[str, str]:
    """Give the new MAC of each device that gets one. What cannot be had is left out (and refused)."""
    links = network.links if network else ()
    found: dict[str, str] = {}
    for each in request.new_macs:
        for link in _meant(each, links):
            found[link.name] = each.mac
    return found


def as_arriving(request: MigrationRequest, workload: WorkloadFacts) -> WorkloadFacts:
    """The workload with the MACs that its copy will have."""
    if workload.network is None:
        return workload
    return replace(workload, network=with_macs(workload.network, macs(request, workload.network)))


def with_macs(network: NetworkFacts, new: Mapping[str, str]) -> NetworkFacts:
    """A network whose devices have these MACs."""
    return replace(network, links=tuple(replace(each, mac=new.get(each.name, each.mac)) for each in network.links))


def at_destination(
    request: MigrationRequest, network: NetworkFacts | None, there: HostFacts, migration_id: str
) -> NetworkFacts | None:
    """Give the workload's network as it shall be there: with its new MACs and addresses, and names that are free."""
    if network is None:
        return None
    arriving = readdressed(with_macs(network, macs(request, network)), readdressing(request, network))
    return own_network.at_destination(arriving, there.devices, migration_id)


def wanted_macs(request: MigrationRequest, workload: WorkloadFacts) -> tuple[str, ...]:
    """The MACs that nobody else may have: the new ones, but for what a device has already."""
    new = macs(request, workload.network)
    links = workload.network.links if workload.network else ()
    return tuple(new[link.name] for link in links if new.get(link.name, link.mac) != link.mac)


def problems(
    request: MigrationRequest, workload: WorkloadFacts, source: HostFacts, destination: DestinationFacts
) -> tuple[Problem, ...]:
    """Say which part of the new identity cannot be had."""
    return (*_host_name_problems(request, workload), *_mac_problems(request, workload, source, destination))


def _host_name_problems(request: MigrationRequest, workload: WorkloadFacts) -> Iterator[Problem]:
    if request.host_name and not workload.has_own_host_name:
        yield Problem(
            "host_name_of_host",
            f"The workload has no host name of its own that could become {request.host_name}: it has its host's, here "
            "and there.",
            "Leave out --hostname; or start it with a host name of its own (`unshare --uts`).",
        )


def _mac_problems(
    request: MigrationRequest, workload: WorkloadFacts, source: HostFacts, destination: DestinationFacts
) -> Iterator[Problem]:
    if not request.new_macs:
        return
    if not workload.has_own_network:
        yield Problem(
            "new_mac_host_network",
            "The workload is in the network of its host, whose devices keep their MACs.",
            "Leave out --new-mac; only a network namespace of its own has devices that move with it.",
        )
        return
    network = workload.network or NetworkFacts()
    links = network.links
    names = ", ".join(link.name for link in links if link.kind in WITH_A_MAC) or "none"
    for number, each in enumerate(request.new_macs):
        meant = _meant(each, links)
        if not meant:
            yield Problem(
                "new_mac_device",
                f"The workload has no network device {each.device} with a MAC of its own."
                if each.device
                else f"It is not said which network device gets the MAC {each.mac}: the workload has {names}.",
                f"Write --new-mac DEVICE={each.mac}, with one of: {names}.",
            )
        elif any(meant == _meant(other, links) for other in request.new_macs[:number]):
            yield Problem(
                "new_mac_device", f"The device {meant[0].name} is given two MACs.", "Name one MAC for each device."
            )
    arriving = [link.mac for link in with_macs(network, macs(request, network)).links]
    for mac in wanted_macs(request, workload):
        where = ""
        if mac in source.macs:
            where = f"by a network device of the source {source.host_name}"
        elif arriving.count(mac) > 1:
            where = "by another device of the workload"
        elif mac in destination.heard_macs and mac not in destination.host.macs:  # of those `own_network` tells
            where = "on the network, where one of the two hosts has heard it within the last minutes"
        if where:
            yield Problem(
                "mac_taken",
                f"The MAC {mac} is in use already: {where}.",
                "Name another; `bridge fdb` and `ip neighbour` show what the hosts have heard, for up to five minutes.",
            )


def _meant(each: NewMac, links: tuple[LinkFacts, ...]) -> tuple[LinkFacts, ...]:
    """The one device that is meant, or none."""
    able = tuple(link for link in links if link.kind in WITH_A_MAC)
    if each.device:
        return tuple(link for link in able if link.name == each.device)
    return able if len(links) == 1 else ()
