"""A new address on another network: how the workload's sockets stand on the destination, and what that costs. Pure.

Called by `preflight` and by the CLI (`parse_new_address`). CRIU can keep all TCP connections of a tree or none, so that
with a new address all are closed: by the kernel of the source, as their process dies in COMMIT.
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
    MigrationRequest,
    NewAddress,
    Problem,
    Severity,
    WorkloadFacts,
)

HINT = "Write OLD=NEW, two addresses of one family, for example 192.0.2.10=198.51.100.10."


def parse_new_address(text: str) -> NewAddress:
    """Read ``OLD=NEW`` as typed; `UsageError` with an example otherwise."""
    old, equals, new = (part.strip() for part in text.partition("="))
    try:
        families = {ipaddress.ip_address(each).version for each in (old, new)}
    except ValueError as error:
        raise UsageError(f"`{text}` is not one address in place of another.", hint=HINT) from error
    if not equals or len(families) != 1:
        raise UsageError(f"`{text}` is not one address in place of another of its family.", hint=HINT)
    for each in (old, new):
        parse_address(each)
    return NewAddress(normal(old), normal(new))


def as_arriving(request: MigrationRequest, workload: WorkloadFacts) -> WorkloadFacts:
    """The workload with the sockets that its copy will have."""
    if not request.new_addresses:
        return workload
    new = {each.old: each.new for each in request.new_addresses}
    staying = (each for each in workload.connections if not _closed(each))
    return replace(
        workload,
        connections=tuple(
            replace(each, local_address=new.get(normal(each.local_address), each.local_address)) for each in staying
        ),
    )


def new_address_problems(
    request: MigrationRequest, workload: WorkloadFacts, destination: DestinationFacts
) -> Iterator[Problem]:
    """Say which of the new addresses cannot be had, and what will be closed."""
    if not request.new_addresses:
        return
    host = destination.host.host_name
    local = {normal(each) for each in destination.local_addresses}
    used = {normal(each.local_address) for each in workload.connections}
    moving = {normal(each.address) for each in request.addresses}
    if workload.has_own_network:
        yield Problem(
            "new_address_own_network",
            "The workload has a network namespace of its own, whose addresses move as they are.",
            "Leave out --new-address; for a clone with another address restart it with one.",
        )
        return
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
    closed = [each for each in workload.connections if _closed(each)]
    if closed:
        yield Problem(
            "connections_closed",
            f"{len(closed)} TCP {'connection' if len(closed) == 1 else 'connections'} will be closed in COMMIT, as "
            f"with --new-address none can be kept: {listed(map(worded, closed))}.",
            "Their peers are told, and may connect again.",
            Severity.WARNS,
        )


def _closed(each: ConnectionFacts) -> bool:
    return each.protocol == "tcp" and (each.state in TALKING_STATES or bool(each.remote_port))
