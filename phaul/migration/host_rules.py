"""Whether the two hosts fit together and the destination can take the workload: the host part of PREFLIGHT. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from phaul.migration.facts import HostFacts, Problem, Severity, WorkloadFacts
from phaul.units import MIB, format_bytes

# The images lie in memory while the restored copy fills up from them, so for a moment there are two of everything.
MEMORY_COPIES = 2
MEMORY_SLACK_BYTES = 64 * MIB  # CRIU itself, page tables, the small images
# CRIU maps its own code and the pages to come beside what the task had (criu/cr-restore.c, 4.2).
MAPPINGS_SLACK = 64
LISTED_FEATURES = 8
CAPABILITY_NAMES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN", 24: "CAP_SYS_RESOURCE"}  # those that containers drop


def version_of(text: str) -> tuple[int, ...]:
    """Read the leading numbers of a version, e.g. ``4.2.1-1`` as (4, 2, 1); () where there are none."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def host_problems(source: HostFacts, destination: HostFacts) -> Iterator[Problem]:
    """Say what keeps two hosts from working together, whatever shall move."""
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
    yield from _version_problems(source, destination)
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
    yield from _cpu_problems(source, destination)


def _version_problems(source: HostFacts, destination: HostFacts) -> Iterator[Problem]:
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
    if version_of(destination.kernel_release)[:2] < version_of(source.kernel_release)[:2]:
        yield Problem(
            "kernel_older",
            f"The kernel of {destination.host_name} is {destination.kernel_release}, older than "
            f"{source.kernel_release} on the source: a program that has found newer system calls will miss them.",
            "Nothing, unless the program is known to use them; else install the same kernel.",
            Severity.WARNS,
        )


def _cpu_problems(source: HostFacts, destination: HostFacts) -> Iterator[Problem]:
    if source.architecture != destination.architecture or not destination.cpu_features:
        return
    missing = [name for name in source.cpu_features if name not in destination.cpu_features]
    if missing:
        more = f" and {len(missing) - LISTED_FEATURES} more" if len(missing) > LISTED_FEATURES else ""
        yield Problem(
            "cpu_features",
            f"The processors of {destination.host_name} lack what programs have found on the source: "
            f"{', '.join(missing[:LISTED_FEATURES])}{more}. A program that uses it would be killed (SIGILL).",
            "Choose a destination with the same or newer processors; between virtual machines give both the same "
            "CPU model.",
        )


def capacity_problems(workload: WorkloadFacts, source: HostFacts, destination: HostFacts) -> Iterator[Problem]:
    """Say what the destination has too little of, or does not allow."""
    host = destination.host_name
    needed = MEMORY_COPIES * workload.memory_bytes + MEMORY_SLACK_BYTES
    if destination.memory_available_bytes < needed:
        yield Problem(
            "memory",
            f"The destination {host} has {format_bytes(destination.memory_available_bytes)} of memory "
            f"available; {format_bytes(needed)} are needed while {format_bytes(workload.memory_bytes)} are restored "
            "from images that lie in memory too.",
            f"Free memory on {host}, or choose another destination.",
        )
    if 0 < destination.most_memory_bytes < workload.memory_bytes:
        yield Problem(
            "policy_memory",
            f"The workload has {format_bytes(workload.memory_bytes)} of memory, and the policy of {host} allows "
            f"{format_bytes(destination.most_memory_bytes)}.",
            f"Choose another destination, or have limits.memory raised in the policy of {host}.",
        )
    if workload.huge_page_bytes and destination.free_huge_page_bytes < workload.huge_page_bytes:
        yield Problem(
            "huge_pages",
            f"The workload has {format_bytes(workload.huge_page_bytes)} of huge pages; {host} has "
            f"{format_bytes(destination.free_huge_page_bytes)} free.",
            f"On {host}: `sysctl vm.nr_hugepages=COUNT`.",
        )
    yield from _limit_problems(workload, destination)
    missing = workload.capabilities & ~destination.capabilities if destination.capabilities else 0
    if missing:
        names = [CAPABILITY_NAMES.get(bit, f"number {bit}") for bit in range(64) if missing >> bit & 1]
        yield Problem(
            "capabilities",
            f"The workload has capabilities that the agent of {host} cannot give: {', '.join(names)}.",
            f"Run the agent of {host} with all capabilities (not in a container that drops some).",
        )
    if workload.security_label and source.security_modules != destination.security_modules:
        yield Problem(
            "security_label",
            f"The workload is confined ({workload.security_label}) by {', '.join(source.security_modules) or 'an LSM'}"
            f"; {host} has {', '.join(destination.security_modules) or 'none'}.",
            "Choose a destination with the same security module, or start the workload unconfined.",
        )
    elif workload.security_label:
        yield Problem(
            "security_profile",
            f"The workload is confined: {workload.security_label}. It is restored with the same label.",
            f"Make sure that {host} has the same profile or policy loaded.",
            Severity.WARNS,
        )


def _limit_problems(workload: WorkloadFacts, destination: HostFacts) -> Iterator[Problem]:
    limits = (
        ("mapping_limit", "vm.max_map_count", workload.most_mappings + MAPPINGS_SLACK, destination.max_mappings),
        ("open_files_limit", "fs.nr_open", workload.most_open_files, destination.max_open_files),
        ("pid_limit", "kernel.pid_max", max(_ids(workload), default=0) + 1, destination.max_pid),
    )
    for code, setting, needed, allowed in limits:
        if allowed and needed > allowed:
            yield Problem(
                code,
                f"{setting} is {allowed} on {destination.host_name}; the workload needs {needed}.",
                f"On {destination.host_name}: `sysctl {setting}={needed}` or more, as on the source.",
            )


def _ids(workload: WorkloadFacts) -> Iterator[int]:
    for task in workload.tasks:
        yield from task.thread_ids
    yield from workload.helper_ids
