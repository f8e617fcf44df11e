"""What the source's journal keeps of a migration: enough to undo it or to see it through after a crash. Pure.

Written by the coordinator once preflight is over, read by `settlement`.
"""

from __future__ import annotations

import dataclasses

from phaul.migration.facts import AddressFacts, ConnectionFacts, MigrationRequest, WorkloadFacts
from phaul.migration.interfaces import TreeIdentity
from phaul.migration.journal import Data


def plan(
    facts: WorkloadFacts, addresses: tuple[AddressFacts, ...], request: MigrationRequest, identity: TreeIdentity
) -> Data:
    """What the source's journal keeps of a migration, to undo it or see it through after a crash."""
    return {
        "tree": identity.as_data(),
        "root_pid": facts.root_pid,
        "command": facts.tasks[0].command,
        "destination": request.destination,
        "addresses": [[each.address, each.prefix_length, each.device] for each in addresses],
        "connections": [dataclasses.asdict(each) for each in facts.connections],
    }


def planned_addresses(data: Data) -> tuple[AddressFacts, ...]:
    """The addresses of a plan."""
    return tuple(AddressFacts(str(address), int(prefix), str(device)) for address, prefix, device in data["addresses"])


def planned_connections(data: Data) -> tuple[ConnectionFacts, ...]:
    """The connections of a plan."""
    return tuple(ConnectionFacts(**each) for each in data["connections"])
