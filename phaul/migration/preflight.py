"""PREFLIGHT: whether a workload may go, by comparing what it uses with what both hosts are. Pure; touches nothing.

Called by the coordinator with facts that `workloads` and both agents gathered. What concerns files stands in
`file_rules`, what concerns addresses and connections in `address_rules`, what somebody else has already in
`taken_rules`, and the hosts themselves in `host_rules`.
"""

from __future__ import annotations

from collections.abc import Sequence

from phaul.errors import PolicyError, PreflightError
from phaul.migration import at_rest, new_identity
from phaul.migration.address_rules import (
    address_problems,
    agents_problems,
    claim_problems,
    connection_problems,
    destination_addresses,
    parse_address,
    resolve_addresses,
    unaccepted_problems,
)
from phaul.migration.facts import (
    DestinationFacts,
    HostFacts,
    MigrationRequest,
    Problem,
    Severity,
    WorkloadFacts,
)
from phaul.migration.file_rules import file_problems
from phaul.migration.host_rules import capacity_problems, host_problems, version_of
from phaul.migration.new_addresses import as_arriving, new_address_problems
from phaul.migration.new_own_addresses import fresh
from phaul.migration.own_network import own_network_problems
from phaul.migration.taken_rules import id_problems, occupied_problems, wanted_ids

__all__ = [
    "agents_problems",
    "compare",
    "destination_addresses",
    "parse_address",
    "refusal",
    "resolve_addresses",
    "version_of",
    "wanted_ids",
]

POLICY = "policy_"  # begins the codes of what a policy has against it


def compare(
    request: MigrationRequest, workload: WorkloadFacts, source: HostFacts, destination: DestinationFacts
) -> tuple[Problem, ...]:
    """
    Say everything that keeps this workload from going, and everything it would lose on the way.

    Args:
        destination: its `files` answer those of `workload` (by path), its `taken_ids` the `wanted_ids`.

    Returns:
        Those that refuse first; within that, hosts, workload, IDs, files, memory, addresses. Each once.
    """
    arriving = new_identity.as_arriving(request, as_arriving(request, workload))
    found = [
        *host_problems(source, destination.host),
        *workload.problems,
        *id_problems(workload, destination),
        *occupied_problems(arriving, destination),
        *file_problems(workload.files, destination.files, destination.host.host_name),
        *capacity_problems(workload, source, destination.host),
        *new_address_problems(request, workload, source, destination),
        *address_problems(request, source, destination),
        *own_network_problems(request, arriving, destination),
        # Addresses of another network namespace say nothing of these hosts.
        *([] if workload.has_own_network else connection_problems(request, arriving.connections, source, destination)),
        *unaccepted_problems(request, workload.connections),
        *claim_problems(
            [each for each in destination.claims if each.address not in fresh(request, workload.network)],
            workload,
            source,
            destination.host,
        ),
    ]
    unique = list(dict.fromkeys(at_rest.judged(request, workload, found)))
    return tuple(sorted(unique, key=lambda problem: problem.severity is not Severity.REFUSES))


def refusal(problems: Sequence[Problem]) -> PreflightError | PolicyError:
    """Make the error that says why a workload may not go: the first reason as its message, all of them as detail."""
    refusing = [problem for problem in problems if problem.severity is Severity.REFUSES] or list(problems)
    first = refusing[0]
    rest = len(refusing) - 1
    more = f" ({rest} more {'reason' if rest == 1 else 'reasons'})" if rest else ""
    kind = PolicyError if first.code.startswith(POLICY) else PreflightError
    return kind(
        f"{first.message}{more}",
        hint=first.hint,
        detail="\n".join(f"{problem.code}: {problem.message} {problem.hint}" for problem in refusing),
    )
