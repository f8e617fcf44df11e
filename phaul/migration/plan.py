"""What follows from the facts once preflight is over. Pure: what to keep, what to fence, what to tell CRIU.

Used by the coordinator; `settlement` reads back what the source's journal keeps: enough to undo a migration, or to see
it through, after a crash.
"""

from __future__ import annotations

import dataclasses
from ipaddress import IPv6Address, ip_address
from typing import Any

from phaul.migration.facts import AddressFacts, ConnectionFacts, MigrationRequest, WorkloadFacts
from phaul.migration.interfaces import TreeIdentity
from phaul.migration.journal import Data
from phaul.migration.new_own_addresses import readdressing
from phaul.migration.own_network import is_fenced


def plan(
    facts: WorkloadFacts, addresses: tuple[AddressFacts, ...], request: MigrationRequest, identity: TreeIdentity
) -> dict[str, Any]:
    """What the source's journal keeps of a migration, to undo it or see it through after a crash."""
    return {
        "tree": identity.as_data(),
        "root_pid": facts.root_pid,
        "command": facts.tasks[0].command,
        "destination": request.destination,
        "addresses": [[each.address, each.prefix_length, each.device] for each in addresses],
        "connections": [dataclasses.asdict(each) for each in facts.connections],
        "network": dataclasses.asdict(facts.network) if facts.network else None,
        "readdressing": dataclasses.asdict(readdressing(request, facts.network)),
    }


def planned_addresses(data: Data) -> tuple[AddressFacts, ...]:
    """The addresses of a plan."""
    return tuple(AddressFacts(str(address), int(prefix), str(device)) for address, prefix, device in data["addresses"])


def planned_connections(data: Data) -> tuple[ConnectionFacts, ...]:
    """The connections of a plan."""
    return tuple(ConnectionFacts(**each) for each in data["connections"])


def keeps_connections(facts: WorkloadFacts, request: MigrationRequest) -> bool:
    """Whether CRIU must keep TCP connections: it refuses a dump with any unless told so, or told to close them."""
    return not request.new_addresses and any(connection.protocol == "tcp" for connection in facts.connections)


def fenced(facts: WorkloadFacts, addresses: tuple[AddressFacts, ...]) -> bool:
    """Whether the fence around `addresses`, or its own network, keeps every packet from the workload's connections.

    Connections over loopback stay inside the tree (preflight refuses others): both of their ends are frozen.
    """
    if facts.network:
        return is_fenced(facts.network)
    fenced = {ip_address(each.address) for each in addresses}
    for connection in facts.connections:
        if connection.protocol != "tcp" or connection.state == "listen":
            continue
        local = ip_address(connection.local_address)
        if isinstance(local, IPv6Address) and local.ipv4_mapped:
            local = local.ipv4_mapped
        if local not in fenced and not local.is_loopback:
            return False
    return True
