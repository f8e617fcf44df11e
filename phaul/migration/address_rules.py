"""Which addresses move, and which connections would be lost: the network part of PREFLIGHT. Pure.

Called by `preflight`, by the CLI (`parse_address`) and by the coordinator (which addresses move, and to where).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import replace

from phaul.errors import UsageError
from phaul.migration.facts import (
    AddressFacts,
    AddressRequest,
    ClaimFacts,
    ConnectionFacts,
    DestinationFacts,
    HostFacts,
    MigrationRequest,
    Problem,
    Severity,
    WorkloadFacts,
)

EXAMPLE = "for example 192.0.2.10/24, 192.0.2.10/24@eth0 or 2001:db8::10/64@eth0"
LISTED_CONNECTIONS = 3
# In these states data still flows to someone; in the others the peer has said goodbye and may be gone for good.
TALKING_STATES = ("established", "syn_sent")


def parse_address(text: str) -> AddressRequest:
    """Read ``IP[/PREFIX][@DEVICE]`` as typed; no prefix means /32 or /128. `UsageError` with an example otherwise."""
    head, at, device = text.strip().partition("@")
    try:
        interface = ipaddress.ip_interface(head)
    except ValueError as error:
        raise UsageError(
            f"`{text}` is not an address with a prefix.", hint=f"Write IP/PREFIX[@DEVICE], {EXAMPLE}."
        ) from error
    # 15 bytes and no slash or blank: dev_valid_name() in net/core/dev.c
    if at and (not device or len(device.encode()) > 15 or "/" in device or any(mark.isspace() for mark in device)):
        raise UsageError(
            f"`{device}` cannot be the name of a network device.", hint=f"Write IP/PREFIX[@DEVICE], {EXAMPLE}."
        )
    if "%" in head:
        raise UsageError(
            f"`{text}` has a zone, which belongs to one host.", hint=f"Write IP/PREFIX[@DEVICE], {EXAMPLE}."
        )
    if (
        interface.ip.is_unspecified
        or interface.ip.is_multicast
        or interface.ip.is_loopback
        or interface.ip.is_link_local
    ):
        raise UsageError(
            f"`{interface.ip}` cannot move: it is no address of one host for the whole network.",
            hint=f"Name the address that clients connect to, {EXAMPLE}.",
        )
    return AddressRequest(str(interface.ip), interface.network.prefixlen, device)


def resolve_addresses(request: MigrationRequest, source: HostFacts) -> tuple[AddressFacts, ...]:
    """Give the addresses that move, as they stand on the source; one that is not there is left out (and refused)."""
    found = (_on(wanted.address, source.addresses) for wanted in request.addresses)
    return tuple(dict.fromkeys(address for address in found if address))


def destination_addresses(request: MigrationRequest, addresses: Sequence[AddressFacts]) -> tuple[AddressFacts, ...]:
    """Give `addresses` as they shall stand on the destination: on the device asked for, else on its namesake."""
    devices = {normal(wanted.address): wanted.device for wanted in request.addresses}
    return tuple(replace(each, device=devices.get(normal(each.address)) or each.device) for each in addresses)


def address_problems(request: MigrationRequest, source: HostFacts, destination: DestinationFacts) -> Iterator[Problem]:
    """Say which of the addresses asked for cannot move."""
    host = destination.host
    local = {normal(address) for address in destination.local_addresses}
    local |= {normal(address.address) for address in host.addresses}
    for wanted in request.addresses:
        here = _on(wanted.address, source.addresses)
        if here is None:
            has = ", ".join(str(address) for address in source.addresses) or "none"
            yield Problem(
                "address_not_on_source",
                f"The address {wanted.address} is not on the source {source.host_name}.",
                f"Its addresses are: {has}.",
            )
        elif wanted.prefix_length not in (here.prefix_length, _whole(here.address)):
            yield Problem(
                "address_prefix",
                f"The address {wanted.address} stands on the source as {here}, not with /{wanted.prefix_length}.",
                f"Write --address {here.address}/{here.prefix_length}.",
            )
        if normal(wanted.address) in local:
            yield Problem(
                "address_on_destination",
                f"The address {wanted.address} is on the destination {host.host_name} already.",
                "Remove it there (`ip address del`), or leave out --address if both hosts shall keep theirs.",
            )
        device = wanted.device or (here.device if here else "")
        if device and host.devices and device not in host.devices:
            yield Problem(
                "device_missing",
                f"The destination {host.host_name} has no network device {device} for {wanted.address}.",
                f"Name one of its devices: --address {wanted.address}/{wanted.prefix_length}@DEVICE, "
                f"with {', '.join(name for name in host.devices if name != 'lo') or 'none there but lo'}.",
            )


def claim_problems(
    claims: Sequence[ClaimFacts], workload: WorkloadFacts, source: HostFacts, destination: HostFacts
) -> Iterator[Problem]:
    """Say which addresses somebody else on the network has too."""
    links = workload.network.links if workload.network else ()
    known = {*source.macs, *destination.macs, *(link.mac for link in links)}
    for claim in claims:
        if claim.mac not in known:
            yield Problem(
                "address_claimed",
                f"The address {claim.address} is claimed by {claim.mac} too, which is neither of the two hosts.",
                f"Find that device (`ip neighbour`, the switch) and give it another address; `arping {claim.address}` "
                "shows who answers.",
            )


def agents_problems(request: MigrationRequest, own_address: str, peer: str) -> tuple[Problem, ...]:
    """
    Say whether the agents would talk to each other over an address that moves away under them.

    Args:
        own_address: what the source's kernel chooses as its own address towards `peer`; "" where it is not known. It
            prefers the newest of a device, which a floating one often is.
    """
    moving = {normal(each.address) for each in request.addresses}
    if not own_address or normal(own_address) not in moving:
        return ()
    return (
        Problem(
            "agents_address_moves",
            f"The agents would talk over {own_address}, which moves: the connection to {peer} would break half-way.",
            "Name the destination with --to by an address of the other family, or mark the address as deprecated on "
            f"the source (`ip address change {own_address}/LEN dev DEVICE preferred_lft 0`).",
        ),
    )


def connection_problems(
    request: MigrationRequest, connections: Sequence[ConnectionFacts], source: HostFacts, destination: DestinationFacts
) -> Iterator[Problem]:
    """Say which sockets could not be made again on the destination, or would lose whom they talk to."""
    moving = {normal(address.address) for address in request.addresses}
    local = {normal(address) for address in destination.local_addresses}
    yield from _homeless(connections, moving | local, source, destination.host.host_name)
    yield from _left_behind(connections)
    yield from _ambiguous(connections, moving, local, destination.host.host_name)
    yield from _to_destination(connections, moving, local, destination.host.host_name)


def unaccepted_problems(request: MigrationRequest, connections: Sequence[ConnectionFacts]) -> Iterator[Problem]:
    """Say which connections are in the kernel's queue only."""
    waiting = [each for each in connections if each.unaccepted]
    if waiting:
        count = sum(each.unaccepted for each in waiting)
        yield Problem(
            "unaccepted_connections",
            f"{count} {'connection waits' if count == 1 else 'connections wait'} to be accepted on "
            f"{listed(f'port {each.local_port}' for each in waiting)}, and CRIU cannot carry these.",
            "They will be reset, as asked for."
            if request.drops_unaccepted
            else "Try again when the server has accepted them, or ask for them to be dropped.",
            Severity.WARNS if request.drops_unaccepted else Severity.REFUSES,
        )


def _homeless(
    connections: Sequence[ConnectionFacts], known: set[str], source: HostFacts, host: str
) -> Iterator[Problem]:
    """Sockets bound to an address that the destination will not have: bind fails there (EADDRNOTAVAIL)."""
    homeless: dict[str, list[ConnectionFacts]] = {}
    for each in connections:
        address = ipaddress.ip_address(each.local_address)
        # 127/8 is local as a whole wherever lo is up.
        everywhere = address.is_unspecified or (address.is_loopback and address.version == 4)
        if not everywhere and not address.is_multicast and normal(each.local_address) not in known:
            homeless.setdefault(each.local_address, []).append(each)
    for text, found in homeless.items():
        here = _on(text, source.addresses)
        yield Problem(
            "connection_address_missing",
            f"{len(found)} {'socket of the workload uses' if len(found) == 1 else 'sockets of the workload use'} the "
            f"address {text}, which {host} does not have: {listed(map(worded, found))}.",
            f"Move the address with the workload: --address {here.address}/{here.prefix_length}."
            if here
            else "End these connections, or let the server listen on an address that both hosts have.",
        )


def _left_behind(connections: Sequence[ConnectionFacts]) -> Iterator[Problem]:
    """TCP connections within the source host whose other end is not in the tree."""
    ends = {(each.protocol, *_local(each), *_remote(each)) for each in connections}
    lonely = [
        each
        for each in connections
        if each.protocol == "tcp"
        and each.state in TALKING_STATES
        and (ipaddress.ip_address(each.remote_address).is_loopback or each.local_address == each.remote_address)
        and (each.protocol, *_remote(each), *_local(each)) not in ends
    ]
    if lonely:
        yield Problem(
            "peer_stays_behind",
            f"{len(lonely)} {'connection leads' if len(lonely) == 1 else 'connections lead'} to a process of the same "
            f"host that would stay there: {listed(map(worded, lonely))}.",
            "`ss -tnp` shows who it is: end that connection, or migrate the tree that holds both ends.",
        )


def _ambiguous(
    connections: Sequence[ConnectionFacts], moving: set[str], local: set[str], host: str
) -> Iterator[Problem]:
    """Connections from an address that both hosts have: what the peer sends keeps going to one of them."""
    found = [
        each
        for each in connections
        if each.state in TALKING_STATES
        and each.protocol == "tcp"
        and not ipaddress.ip_address(each.local_address).is_loopback
        and each.local_address != each.remote_address
        and normal(each.local_address) in local - moving
    ]
    if found:
        yield Problem(
            "address_on_both_hosts",
            f"{host} has the local address of {len(found)} {'connection' if len(found) == 1 else 'connections'} too; "
            f"whether its peer is reached from there is not known: {listed(map(worded, found))}.",
            "If the peer is reached from both hosts by that address, nothing needs to be done.",
            Severity.WARNS,
        )


def _to_destination(
    connections: Sequence[ConnectionFacts], moving: set[str], local: set[str], host: str
) -> Iterator[Problem]:
    """Connections with a process of the destination, which cannot reach an address that its own host has by then."""
    found = [
        each
        for each in connections
        if each.protocol == "tcp"
        and each.state in TALKING_STATES
        and normal(each.local_address) in moving
        and normal(each.remote_address) in local
        and not ipaddress.ip_address(each.remote_address).is_loopback
    ]
    if found:
        yield Problem(
            "peer_on_destination",
            f"{len(found)} {'connection leads' if len(found) == 1 else 'connections lead'} to {host} itself, and "
            f"{'stands' if len(found) == 1 else 'stand'} still from PREPARE on until the workload runs there: "
            f"{listed(map(worded, found))}.",
            "Nothing is lost. Where that takes too long, --mode stop-and-copy makes it as short as the freeze.",
            Severity.WARNS,
        )


def _on(address: str, addresses: Sequence[AddressFacts]) -> AddressFacts | None:
    return next((each for each in addresses if normal(each.address) == normal(address)), None)


def normal(address: str) -> str:
    """One spelling for each address; IPv4-mapped IPv6 is IPv4, as the kernel routes it."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def _whole(address: str) -> int:
    return ipaddress.ip_address(address).max_prefixlen


def _local(each: ConnectionFacts) -> tuple[str, int]:
    return normal(each.local_address), each.local_port


def _remote(each: ConnectionFacts) -> tuple[str, int]:
    return normal(each.remote_address), each.remote_port


def worded(each: ConnectionFacts) -> str:
    """Say what a socket is."""
    local = _endpoint(each.local_address, each.local_port)
    if not each.remote_port:
        return f"{each.protocol} {each.state} {local}"
    return f"{each.protocol} {local} to {_endpoint(each.remote_address, each.remote_port)}"


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def listed(items: Iterator[str] | map[str]) -> str:
    """Name the first few, and how many more there are."""
    every = list(dict.fromkeys(items))
    more = f" and {len(every) - LISTED_CONNECTIONS} more" if len(every) > LISTED_CONNECTIONS else ""
    return ", ".join(every[:LISTED_CONNECTIONS]) + more
