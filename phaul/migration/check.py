"""PREFLIGHT put together: the facts of both hosts are asked for, `preflight` compares them. Touches nothing.

Called by the coordinator, and by `agent.outgoing` for `phaul check`, `phaul migrate --dry-run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from phaul.migration import (
    auto_addresses,
    check_report,
    file_rules,
    mode,
    new_addresses,
    new_identity,
    own_network,
    preflight,
)
from phaul.migration.both_hooks import hook_problems
from phaul.migration.facts import CheckReport, MigrationRequest, WorkloadFacts
from phaul.migration.host import Host
from phaul.migration.peer import PeerAgent

Allowed = Callable[[WorkloadFacts], Awaitable[None]]  # raises `PolicyError` for a workload that may not leave


async def every_workload(facts: WorkloadFacts) -> None:
    """`Allowed` where nobody has a policy."""


async def check(
    request: MigrationRequest, host: Host, peer: PeerAgent, allowed: Allowed = every_workload
) -> CheckReport:
    """PREFLIGHT: compare both hosts with what the workload uses. Touches nothing.

    Raises `PreflightError` where there is no workload to look at, `UnreachableError` where there is no destination, and
    what `allowed` raises, before the destination hears anything of the workload.
    """
    workload, source, own_address = await asyncio.gather(
        host.workload.inspect(request.root_pid), host.describe(), peer.own_address()
    )
    if workload.has_own_network:
        workload = replace(workload, network=await host.own_networks.look(request.root_pid))
    await allowed(workload)
    request = auto_addresses.resolve(request, workload, source, own_address)
    moving = preflight.destination_addresses(request, preflight.resolve_addresses(request, source))
    arriving = new_addresses.as_arriving(request, workload)
    probed = (*moving, *own_network.probed(arriving.network))
    ids = preflight.wanted_ids(workload)
    macs = new_identity.wanted_macs(request, workload)
    destination = await peer.observe(ids, workload.files, request.hooks, probed, macs)
    if macs:
        heard = (*destination.heard_macs, *await host.network.heard(macs))
        destination = replace(destination, heard_macs=heard)
    if changing := file_rules.perhaps_changed(workload.files, destination.files):
        _, later, _ = await host.workload.observe((), changing)
        workload = replace(workload, files=file_rules.as_changed(workload.files, destination.files, later))
    problems = (
        *preflight.compare(request, workload, source, destination),
        *preflight.agents_problems(request, own_address, peer.name),
        *new_identity.problems(request, workload, source, destination),
        *mode.problems(request, source),
    )
    found = CheckReport(
        source=source,
        destination=destination.host,
        workload=workload,
        problems=problems,
        addresses=request.addresses,
        source_hooks=host.hooks.find(request.hooks),
        destination_hooks=destination.hooks,
    )
    found = replace(found, problems=(*hook_problems(found), *problems))
    return replace(
        found,
        fine=check_report.fine(workload, source, destination, problems),
        expected_downtime_us=0 if found.refused else check_report.expected_downtime_us(workload),
    )
