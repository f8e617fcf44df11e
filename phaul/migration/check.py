"""PREFLIGHT put together: the facts of both hosts are asked for, `preflight` compares them. Touches nothing.

Called by the coordinator, and by `agent.outgoing` for `phaul check`, `phaul migrate --dry-run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from phaul.migration import check_report, mode, preflight
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
    workload = await host.workload.inspect(request.root_pid)
    await allowed(workload)
    source, destination = await asyncio.gather(
        host.describe(),
        peer.observe(preflight.wanted_ids(workload), workload.files, request.hooks),
    )
    problems = (
        *preflight.compare(request, workload, source, destination),
        *preflight.agents_problems(request, await peer.own_address(), peer.name),
        *mode.problems(request, source),
    )
    found = CheckReport(
        source=source,
        destination=destination.host,
        workload=workload,
        problems=problems,
        source_hooks=host.hooks.find(request.hooks),
        destination_hooks=destination.hooks,
    )
    found = replace(found, problems=(*hook_problems(found), *problems))
    return replace(
        found,
        fine=check_report.fine(workload, source, destination, problems),
        expected_downtime_us=0 if found.refused else check_report.expected_downtime_us(workload),
    )
