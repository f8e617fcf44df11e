"""What follows from the facts once preflight is over. Pure: what to keep, what to fence, what to tell CRIU.

Used by the coordinator; `settlement` reads back what the source's journal keeps: enough to undo a migration, or to see
it through, after a crash.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

from phaul.migration.engine_requests import DumpRequest
from phaul.migration.facts import AddressFacts, ConnectionFacts, MigrationRequest, NetworkFacts, WorkloadFacts
from phaul.migration.interfaces import TreeIdentity
from phaul.migration.journal import Data
from phaul.migration.new_own_addresses import readdressing
from phaul.migration.own_network import is_fenced, is_left_out
from phaul.migration.peer import Reservation
from phaul.migration.readdressing import Readdressing


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
    return not request.closes_connections and any(connection.protocol == "tcp" for connection in facts.connections)


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


def reservation(
    migration_id: str,
    facts: WorkloadFacts,
    request: MigrationRequest,
    *,
    addresses: tuple[AddressFacts, ...],
    network: NetworkFacts | None,
    source_host: str,
    source_port: int,
    destination_host: str,
    source_peer: str = "",
) -> Reservation:
    """What the destination shall hold ready. `addresses` and `network` are as they shall be there."""
    return Reservation(
        migration_id=migration_id,
        source_host=source_host,
        root_pid=facts.root_pid,
        command=facts.tasks[0].command,
        memory_bytes=facts.memory_bytes,
        addresses=addresses,
        keep_connections=keeps_connections(facts, request),
        shell_job=facts.needs_shell_job,
        network=network,
        source_port=source_port,
        source_peer=source_peer,
        hooks=request.hooks,
        destination_host=destination_host,
        close_connections=request.closes_connections,
    )


def dump_request(
    migration_id: str,
    facts: WorkloadFacts,
    request: MigrationRequest,
    *,
    addresses: tuple[AddressFacts, ...],
    images: Path,
    page_channel_fd: int,
    parent: Path | None,
    macs: Mapping[str, str],
    readdressing: Readdressing,
) -> DumpRequest:
    """What the engine is asked for in FREEZE. `macs` are new ones, by device."""
    return DumpRequest(
        migration_id=migration_id,
        root_pid=facts.root_pid,
        images=images,
        page_channel_fd=page_channel_fd,
        keep_connections=keeps_connections(facts, request),
        shell_job=facts.needs_shell_job,
        drop_unaccepted=request.drops_unaccepted,
        fenced=fenced(facts, addresses),
        parent=parent,
        new_addresses=tuple((each.old, each.new) for each in request.new_addresses),
        readdressing=readdressing,
        new_macs=tuple(macs.items()),
        host_name=request.host_name,
        empty_network=is_left_out(facts.network),
        close_connections=request.closes_connections,
    )
