"""`--address auto`: which addresses of the host belong to the workload, and so move with it. Pure.

Called by `check`. An address is the workload's when its sockets use it by name and no socket of anybody else does. What
a host could not be reached without is never taken: the address that the agents talk over, and a device's last one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import replace

from phaul.migration.address_rules import normal
from phaul.migration.facts import AddressFacts, AddressRequest, HostFacts, MigrationRequest, WorkloadFacts


def resolve(
    request: MigrationRequest, workload: WorkloadFacts, source: HostFacts, own_address: str
) -> MigrationRequest:
    """Give the request with the addresses that were found in place of `auto`; those that were named stay."""
    if not request.auto_addresses or workload.has_own_network:
        return replace(request, auto_addresses=False)
    named = {normal(each.address) for each in request.addresses}
    found = tuple(
        AddressRequest(each.address, each.prefix_length)
        for each in _found(workload, source, own_address)
        if normal(each.address) not in named
    )
    return replace(request, addresses=(*request.addresses, *found), auto_addresses=False)


def _found(workload: WorkloadFacts, source: HostFacts, own_address: str) -> Iterator[AddressFacts]:
    used = {normal(each.local_address) for each in workload.connections}
    others = {normal(each) for each in (*workload.addresses_of_others, *([own_address] if own_address else []))}
    for each in source.addresses:
        if normal(each.address) in used - others and not _is_last(each, source.addresses):
            yield each


def _is_last(address: AddressFacts, addresses: Sequence[AddressFacts]) -> bool:
    """Whether a device would be left without an address of this family."""
    version = ipaddress.ip_address(address.address).version
    return not any(
        each != address and each.device == address.device and ipaddress.ip_address(each.address).version == version
        for each in addresses
    )
