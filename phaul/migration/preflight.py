"""PREFLIGHT: whether a workload may go, by comparing what it uses with what both hosts are. Pure; touches nothing.

Called by the coordinator with facts that `workloads` and both agents gathered. What concerns files stands in
`file_rules`, what concerns addresses and connections in `address_rules`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from phaul.errors import PreflightError
from phaul.migration.address_rules import (
    address_problems,
    agents_problems,
    connection_problems,
    destination_addresses,
    parse_address,
    resolve_addresses,
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
from phaul.units import MIB, format_bytes

__all__ = ["agents_problems", "compare", "destination_addresses", "parse_address", "refusal", "resolve_addresses"]

# The images lie in memory while the restored copy fills up from them, so for a moment there are two of everything.
MEMORY_COPIES = 2
MEMORY_SLACK_BYTES = 64 * MIB  # CRIU itself, page tables, the small images
LISTED_IDS = 5


def compare(
    request: MigrationRequest, workload: WorkloadFacts, source: HostFacts, destination: DestinationFacts
) -> tuple[Problem, ...]:
    """
    Say everything that keeps this workload from going, and everything it would lose on the way.

    Args:
        destination: its `files` answer those of `workload` (by path), its `taken_ids` the thread IDs of all tasks.

    Returns:
        Those that refuse first; within that, hosts, workload, IDs, files, memory, addresses. Each once.
    """
    found = [
        *_host_problems(source, destination.host),
        *workload.problems,
        *_id_problems(workload, destination),
        *file_problems(workload.files, destination.files, destination.host.host_name),
        *_memory_problems(workload, destination.host),
        *address_problems(request, source, destination),
        # Addresses of another network namespace say nothing of these hosts.
        *([] if workload.has_own_network else connection_problems(request, workload.connections, source, destination)),
    ]
    unique = list(dict.fromkeys(found))
    return tuple(sorted(unique, key=lambda problem: problem.severity is not Severity.REFUSES))


def refusal(problems: Sequence[Problem]) -> PreflightError:
    """Make the error that says why a workload may not go: the first reason as its message, all of them as detail."""
    refusing = [problem for problem in problems if problem.severity is Severity.REFUSES] or list(problems)
    first = refusing[0]
    rest = len(refusing) - 1
    more = f" ({rest} more {'reason' if rest == 1 else 'reasons'})" if rest else ""
    return PreflightError(
        f"{first.message}{more}",
        hint=first.hint,
        detail="\n".join(f"{problem.code}: {problem.message} {problem.hint}" for problem in refusing),
    )


def version_of(text: str) -> tuple[int, ...]:
    """Read the leading numbers of a version, e.g. ``4.2.1-1`` as (4, 2, 1); () where there are none."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _host_problems(source: HostFacts, destination: HostFacts) -> Iterator[Problem]:
    for role, host in (("source", source), ("destination", destination)):
        for problem in host.problems:
            yield Problem(
                problem.code, f"On the {role} {host.host_name}: {problem.message}", problem.hint, problem.severity
            )
        if not host.criu_version and not any(problem.code.startswith("criu") for problem in host.problems):
            yield Problem(
                "criu_missing",
                f"On the {role} {host.host_name}: there is no CRIU that runs.",
                "Install CRIU 4.2 or newer there; `phaul doctor` says what is missing.",
            )
    ours, theirs = version_of(source.phaul_version), version_of(destination.phaul_version)
    if ours[:2] != theirs[:2]:
        yield Problem(
            "phaul_version",
            f"The agents speak different versions: {source.phaul_version or 'unknown'} on the source "
            f"{source.host_name}, {destination.phaul_version or 'unknown'} on the destination {destination.host_name}.",
            "Install the same major and minor version of phaul on both hosts and restart the agents.",
        )
    # Images are read by the same or a newer CRIU; an older one does not know their newer fields.
    if destination.criu_version and version_of(destination.criu_version) < version_of(source.criu_version):
        yield Problem(
            "criu_older",
            f"CRIU on the destination {destination.host_name} is {destination.criu_version}, older than "
            f"{source.criu_version} on the source, and may not read its images.",
            f"Install CRIU {source.criu_version} or newer on {destination.host_name}.",
        )
    if source.architecture != destination.architecture:
        yield Problem(
            "architecture",
            f"The destination {destination.host_name} is {destination.architecture}, the source {source.architecture}.",
            "Choose a destination of the same architecture.",
        )
    if source.page_size_bytes != destination.page_size_bytes:
        yield Problem(
            "page_size",
            f"Memory pages have {destination.page_size_bytes} bytes on the destination {destination.host_name}, "
            f"{source.page_size_bytes} on the source.",
            "Choose a destination whose kernel has the same page size (`getconf PAGESIZE`).",
        )


def _id_problems(workload: WorkloadFacts, destination: DestinationFacts) -> Iterator[Problem]:
    wanted = {number: task for task in workload.tasks for number in (task.pid, *task.thread_ids)}
    taken = sorted(number for number in set(destination.taken_ids) if number in wanted)
    if not taken:
        return
    named = [
        f"{number} ({wanted[number].command}{'' if number == wanted[number].pid else ', a thread'})"
        for number in taken[:LISTED_IDS]
    ]
    more = f" and {len(taken) - LISTED_IDS} more" if len(taken) > LISTED_IDS else ""
    host = destination.host.host_name
    yield Problem(
        "ids_taken",
        f"The workload keeps its process and thread IDs, and on the destination {host} these are in use: "
        f"{', '.join(named)}{more}.",
        f"`ps -eLo pid,tid,pgid,sid,comm` on {host} shows by what: end that, or restart the workload to get other IDs.",
    )


def _memory_problems(workload: WorkloadFacts, destination: HostFacts) -> Iterator[Problem]:
    needed = MEMORY_COPIES * workload.memory_bytes + MEMORY_SLACK_BYTES
    if destination.memory_available_bytes < needed:
        yield Problem(
            "memory",
            f"The destination {destination.host_name} has {format_bytes(destination.memory_available_bytes)} of memory "
            f"available; {format_bytes(needed)} are needed while {format_bytes(workload.memory_bytes)} are restored "
            "from images that lie in memory too.",
            f"Free memory on {destination.host_name}, or choose another destination.",
        )
