"""PREFLIGHT put together: the facts of both hosts are asked for, `preflight` compares them. Touches nothing.

Called by the coordinator, and by `agent.outgoing` for `phaul migrate --dry-run`.
"""

from __future__ import annotations

import asyncio

from phaul.migration import preflight
from phaul.migration.facts import CheckReport, MigrationRequest
from phaul.migration.host import Host
from phaul.migration.peer import PeerAgent


async def check(request: MigrationRequest, host: Host, peer: PeerAgent) -> CheckReport:
    """PREFLIGHT: compare both hosts with what the workload uses. Touches nothing.

    Raises `PreflightError` where there is no workload to look at, `UnreachableError` where there is no destination.
    """
    workload = await host.workload.inspect(request.root_pid)
    source, destination = await asyncio.gather(
        host.describe(),
        peer.observe([thread for task in workload.tasks for thread in task.thread_ids], workload.files),
    )
    problems = (
        *preflight.compare(request, workload, source, destination),
        *preflight.agents_problems(request, await peer.own_address(), peer.name),
    )
    return CheckReport(source=source, destination=destination.host, workload=workload, problems=problems)
