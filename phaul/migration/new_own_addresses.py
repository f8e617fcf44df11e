"""New addresses for a network namespace that the workload has for itself: what becomes of it, and what is in the way.

Called by `new_addresses`, `new_identity` and the coordinator. Pure; what is done to the images is in `readdressing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from phaul.migration.address_rules import normal, worded
from phaul.migration.facts import (
    ConnectionFacts,
    DestinationFacts,
    HostFacts,
    LinkFacts,
    MigrationRequest,
    NetworkFacts,
    NewAddress,
    Problem,
    Severity,
)
from phaul.migration.readdressing import SMALLEST_SUBNET, STAYING, NewPlace, Readdressing


def readdressing(request: MigrationRequest, network: NetworkFacts | None) -> Readdressing:
    """Say what becomes of the namespace. What cannot be had is left out (and refused)."""
    if network is None:
        return STAYING
    places: list[NewPlace] = []
    for link in network.links:
        pairs = [(each, pair) for each in link.addresses if (pair := _pair(request, each))]
        going = {each for each, _ in pairs}
        for each, pair in pairs:
            home = ip_interface(each).network
            alone = not any(ip_interface(other).ip in home for other in link.addresses if other not in going)
            places.append(NewPlace(link.index, each, _new(each, pair), alone))
    gateways = tuple((each.old, each.new) for each in request.new_gateways)
    return Readdressing(tuple(places), gateways)


def readdressed(network: NetworkFacts, change: Readdressing) -> NetworkFacts:
    """Give the network that the copy has."""
    return replace(network, links=tuple(_readdressed(link, change) for link in network.links)) if change else network


def _readdressed(link: LinkFacts, change: Readdressing) -> LinkFacts:
    places = [each for each in change.places if each.index == link.index]
    new = {each.old: each.new for each in places}
    moved = {each.network: ip_interface(each.new).network for each in places if each.alone}
    nets = (ip_network(each) for each in link.on_link)
    gateways = dict(change.gateways)
    return replace(
        link,
        addresses=tuple(new.get(each, each) for each in link.addresses),
        gateways=tuple(gateways.get(each, each) for each in link.gateways),
        on_link=tuple(str(moved.get(each, each)) for each in nets),
    )


def fresh(request: MigrationRequest, network: NetworkFacts | None) -> set[str]:
    """Give the addresses that the workload will have and that nobody may have now, the hosts included."""
    links = network.links if network else ()
    return {each.new for each in request.new_addresses} - {_bare(each) for link in links for each in link.addresses}


def own_address_problems(
    request: MigrationRequest,
    network: NetworkFacts,
    connections: Sequence[ConnectionFacts],
    source: HostFacts,
    destination: DestinationFacts,
) -> Iterator[Problem]:
    """Say which of the new addresses and gateways cannot be had."""
    has = [each for link in network.links for each in link.addresses]
    staying = {_bare(each) for each in has} - {each.old for each in request.new_addresses}
    for number, pair in enumerate(request.new_addresses):
        before = request.new_addresses[:number]
        if pair.old not in {_bare(each) for each in has}:
            yield Problem(
                "old_address_missing",
                f"No network device of the workload has the address {pair.old}, which {pair.new} should stand for.",
                f"Its addresses are: {', '.join(has) or 'none'}.",
            )
        where = ""
        if any(each.old == pair.old for each in before):
            yield Problem(
                "old_address_missing",
                f"{pair.old} is given two new addresses.",
                "Name one new address for each.",
            )
        elif pair.new in staying:
            where = "the workload itself"
        elif any(each.new == pair.new for each in before):
            where = "another address of the workload, which it shall stand for as well"
        elif pair.new in {normal(each.address) for each in source.addresses}:
            where = f"the source {source.host_name}"
        elif macs := [each.mac for each in destination.claims if each.address in fresh(request, network) & {pair.new}]:
            where = f"{', '.join(macs)}, as the network of the destination says"
        if where:
            yield Problem(
                "new_address_taken",
                f"The new address {pair.new} is that of somebody already: {where}.",
                f"Name one that is free; `arping {pair.new}` shows who answers.",
            )
    change = readdressing(request, network)
    for link, there in zip(network.links, readdressed(network, change).links, strict=True):
        for place in (each for each in change.places if each.index == link.index):
            yield from _place_problems(place, there, destination.host)
        yield from _gateway_problems(link, there)
    yield from _peer_problems(connections, network, readdressed(network, change))
    used = {each for link in network.links for each in link.gateways}
    for pair in request.new_gateways:
        if pair.old not in used:
            yield Problem(
                "new_gateway_unused",
                f"No route of the workload goes by the gateway {pair.old}, which {pair.new} should stand for.",
                f"Its gateways are: {', '.join(sorted(used)) or 'none'}.",
            )


def _place_problems(place: NewPlace, link: LinkFacts, host: HostFacts) -> Iterator[Problem]:
    new = ip_interface(place.new)
    nets = new.network
    if nets.prefixlen < SMALLEST_SUBNET[new.version] and new.ip == nets.network_address:
        of = "the network itself"
    elif new.version == 4 and nets.prefixlen < SMALLEST_SUBNET[4] and new.ip == nets.broadcast_address:
        of = "all of the network (broadcast)"
    else:
        of = ""
    if of:
        yield Problem(
            "new_address_prefix",
            f"{new.ip} is the address of {of}, with the prefix of {place.new}.",
            "Name another, or its prefix as well: --new-address OLD=NEW/PREFIX.",
        )
    carrier = link.bridge or link.outer
    known = [
        ip_interface(f"{each.address}/{each.prefix_length}").network
        for each in host.addresses
        if each.device == carrier and ip_address(each.address).version == new.version
    ]
    if known and not any(new.ip in each for each in known):
        yield Problem(
            "new_address_elsewhere",
            f"The new address {new.ip} is in no network that {carrier} of {host.host_name} has an address in: "
            f"{', '.join(map(str, dict.fromkeys(known)))}.",
            "If its network is there all the same, nothing needs to be done.",
            Severity.WARNS,
        )


def _gateway_problems(link: LinkFacts, there: LinkFacts) -> Iterator[Problem]:
    """Routes by a gateway that is not reached any more: the kernel would not take them."""
    for old, gateway in dict.fromkeys(zip(link.gateways, there.gateways, strict=True)):
        if _is_reached(gateway, there) or (old == gateway and not _is_reached(old, link)):
            continue
        yield Problem(
            "gateway_unreachable",
            f"Routes of the workload's network device {link.name} go by {gateway}, which is not in the network of its "
            f"addresses there: {', '.join(there.addresses) or 'none'}.",
            f"Name the gateway that is in it: --new-gateway {old}=NEW; or take these routes away before "
            "(`ip route del`).",
        )


def _peer_problems(
    connections: Sequence[ConnectionFacts], here: NetworkFacts, there: NetworkFacts
) -> Iterator[Problem]:
    """Datagram sockets that are connected: CRIU connects them again, which the kernel refuses without a route."""
    if any(link.gateways for link in there.links):
        return  # by which anybody may be reached
    for each in connections:
        address = ip_address(each.remote_address)
        if each.protocol != "udp" or not each.remote_port or address.is_loopback:
            continue
        before, after = (any(_is_reached(each.remote_address, link) for link in links.links) for links in (here, there))
        if before and not after:
            yield Problem(
                "peer_unreachable",
                f"No route leads from the workload's addresses there to the peer of its socket {worded(each)}.",
                "Name an address in a network from which it is reached, or end what talks to it.",
            )


def _is_reached(gateway: str, link: LinkFacts) -> bool:
    address = ip_address(gateway)
    if address.is_link_local:
        return True
    nets = (*(ip_interface(each).network for each in link.addresses), *map(ip_network, link.on_link))
    return any(address in each for each in nets)


def _pair(request: MigrationRequest, address: str) -> NewAddress | None:
    return next((each for each in request.new_addresses if each.old == _bare(address)), None)


def _new(old: str, pair: NewAddress) -> str:
    return f"{pair.new}/{pair.prefix_length or ip_interface(old).network.prefixlen}"


def _bare(address: str) -> str:
    return normal(address.partition("/")[0])
