"""A new address on another network: how the workload's sockets stand on the destination, and what that costs. Pure.

Called by `preflight` and by the CLI (`parse_new_address`, `parse_new_gateway`). CRIU can keep all TCP connections of a
tree or none, so that with a new address all are closed: by the kernel of the source, as their process dies in COMMIT.

In the network of the host the new address is one that the destination has; with a network namespace of its own the
workload brings it (`new_own_addresses`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace

from phaul.errors import UsageError
from phaul.migration.address_rules import TALKING_STATES, listed, normal, parse_address, worded
from phaul.migration.facts import (
    ConnectionFacts,
    DestinationFacts,
    HostFacts,
    MigrationRequest,
    NewAddress,
    Problem,
    Severity,
    WorkloadFacts,
)
from phaul.migration.new_own_addresses import own_address_problems, readdressed, readdressing

HINT = "Write OLD=NEW[/PREFIX], two addresses of one family, for example 192.0.2.10=198.51.100.10."
GATEWAY_HINT = "Write OLD=NEW, two addresses of one family, for example 192.0.2.1=198.51.100.1."


def parse_new_address(text: str) -> NewAddress:
    """Read ``OLD=NEW`` or ``OLD=NEW/PREFIX`` as typed; `UsageError` with an example otherwise."""
    head, slash, prefix = text.partition("/")
    old, new = _two(head, HINT)
    for each in (old, new):
        parse_address(each)
    if not slash:
        return NewAddress(old, new)
    length = int(prefix) if prefix.strip().isascii() and prefix.strip().isdecimal() else 0
    if not 0 < length <= ipaddress.ip_address(new).max_prefixlen:
        raise UsageError(f"`{prefix}` is no prefix length of {new}.", hint=HINT)
    return NewAddress(old, new, length)


def parse_new_gateway(text: str) -> NewAddress:
    """Read ``OLD=NEW`` as typed; `UsageError` with an example otherwise."""
    return NewAddress(*_two(text, GATEWAY_HINT))


def _two(text: str, hint: str) -> tuple[str, str]:
    old, equals, new = (part.strip() for part in text.partition("="))
    try:
        found = [ipaddress.ip_address(each) for each in (old, new)]
    except ValueError as error:
        raise UsageError(f"`{text}` is not one address in place of another.", hint=hint) from error
    if not equals or found[0].version != found[1].version or any("%" in each for each in (old, new)):
        raise UsageError(f"`{text}` is not one address in place of another of its family.", hint=hint)
    return normal(old), normal(new)


def as_arriving(request: MigrationRequest, workload: WorkloadFacts) -> WorkloadFacts:
    """The workload with the sockets that its copy will have, and with the addresses of its own network."""
    if workload.network is not None:
        change = readdressing(request, workload.network)
        workload = replace(workload, network=readdressed(workload.network, change))
    if not request.closes_connections:
        return workload
    new = {each.old: each.new for each in request.new_addresses}
    staying = (each for each in workload.connections if not is_closed(each))
    return replace(
        workload,
        connections=tuple(
            replace(each, local_address=new.get(normal(each.local_address), each.local_address)) for each in staying
        ),
    )


def new_address_problems(
    request: MigrationRequest, workload: WorkloadFacts, source: HostFacts, destination: DestinationFacts
) -> Iterator[Problem]:
    """Say which of the new addresses cannot be had, and what will be closed."""
    if workload.network is not None and (request.new_addresses or request.new_gateways):
        yield from own_address_problems(request, workload.network, workload.connections, source, destination)
    elif not workload.has_own_network:
        yield from _host_problems(request, workload, destination)
    if not request.new_addresses:
        return
    closed = [each for each in workload.connections if is_closed(each)]
    if closed:
        yield Problem(
            "connections_closed",
            f"{len(closed)} TCP {'connection' if len(closed) == 1 else 'connections'} will be closed in COMMIT, as "
            f"with --new-address none can be kept: {listed(map(worded, closed))}.",
            "Their peers are told, and may connect again.",
            Severity.WARNS,
        )


def _host_problems(
    request: MigrationRequest, workload: WorkloadFacts, destination: DestinationFacts
) -> Iterator[Problem]:
    """Say which of the new addresses cannot be had in the network of the host."""
    host = destination.host.host_name
    if request.new_gateways:
        yield Problem(
            "new_gateway_host_network",
            "The workload is in the network of its host, whose routes stay as they are.",
            "Leave out --new-gateway; only a network namespace of its own has routes that move with it.",
        )
    local = {normal(each) for each in destination.local_addresses}
    used = {normal(each.local_address) for each in workload.connections}
    moving = {normal(each.address) for each in request.addresses}
    for each in request.new_addresses:
        if each.old not in used:
            yield Problem(
                "new_address_unused",
                f"No socket of the workload is bound to {each.old}, which {each.new} should stand for.",
                f"Its sockets have: {listed(map(worded, workload.connections)) or 'no address'}.",
            )
        if each.old in moving:
            yield Problem(
                "new_address_moves",
                f"The address {each.old} cannot both move with the workload and be left behind.",
                "Leave out --address, or --new-address.",
            )
        if each.new not in local:
            yield Problem(
                "new_address_missing",
                f"{host} does not have the address {each.new}.",
                f"Put it on a device of {host} before, or name one that is there.",
            )
        if each.prefix_length:
            yield Problem(
                "new_address_prefix",
                f"{each.new}/{each.prefix_length} has a prefix, and the workload is in the network of its host: there "
                f"the address has the one that it stands with on {host}.",
                f"Write --new-address {each.old}={each.new}.",
            )


def is_closed(each: ConnectionFacts) -> bool:
    """Whether a copy without TCP connections does not have this socket as it is."""
    return each.protocol == "tcp" and (each.state in TALKING_STATES or bool(each.remote_port))
