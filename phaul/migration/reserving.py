"""What follows from a reservation, on the destination. Pure.

Used by `destination` and `arrivals`.
"""

from __future__ import annotations

from phaul.migration.facts import AddressFacts
from phaul.migration.hooks import HookScene
from phaul.migration.journal import Data
from phaul.migration.own_network import network_from
from phaul.migration.peer import Reservation
from phaul.units import MIB

MEMORY_SLACK_BYTES = 64 * MIB  # a workload may grow between preflight and freeze; a tenth more, and this


def room_bytes(memory_bytes: int) -> int:
    """How much memory the pages of a workload of this size may take at most."""
    return memory_bytes + memory_bytes // 10 + MEMORY_SLACK_BYTES


def reservation_of(data: Data) -> Reservation:
    """Read a reservation out of the record that announced it."""
    addresses = tuple(AddressFacts(**each) for each in data["addresses"])
    network = network_from(data.get("network"))
    hooks = tuple(data.get("hooks", ()))
    return Reservation(**{**data, "addresses": addresses, "hooks": hooks, "network": network})


def scene_of(reservation: Reservation) -> HookScene:
    """What hooks on the destination are told."""
    return HookScene(
        reservation.migration_id,
        reservation.root_pid,
        reservation.command,
        reservation.source_host,
        reservation.destination_host,
        reservation.addresses,
        reservation.hooks,
    )
