"""What else a check tells beside its problems: what was looked at and is fine, and how long the pause may be. Pure.

Called by `check` and by whoever shows a report (`group_of`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from phaul.migration.facts import DestinationFacts, HostFacts, Problem, Severity, WorkloadFacts
from phaul.units import GIB, format_bytes

# docs/guide.md lists the codes under these headings; a test holds the two together.
GROUPS: dict[str, tuple[str, ...]] = {
    "The process": (
        "no_such_process", "thread", "kernel_thread", "zombie", "own_agent", "ancestor_of_agent", "not_allowed",
        "own_namespaces", "own_network_namespace", "network_namespace_shared", "ipc_namespace_shared",
        "traced", "traces", "frozen", "uninterruptible", "leader_ended",
        "shared_between_processes", "thread_apart", "scheduling_policy", "settings_lost", "agent_capabilities",
        "sysv_shared_memory", "sysv_semaphores", "sysv_messages", "shared_memory_number", "secret_memory", "uprobes",
        "ids_taken", "memory_missing", "host_name_of_host",
    ),
    "Its descriptors": (
        "terminal", "terminal_taken", "pipe_leaves_tree", "packet_pipe", "unix_socket_leaves_tree",
        "unaccepted_unix_connections", "unix_name_taken", "io_uring", "mptcp_socket", "socket_kind", "socket_filter",
        "socket_device_missing", "multicast_group", "unread_messages", "unsent_messages", "descriptor_kind", "device",
        "watch",
    ),
    "Its files": (
        "file_missing", "file_type", "file_mode", "file_size", "file_build_id", "file_replaced", "file_locked",
        "deleted_file_too_big", "deleted_file_linked", "mount_gone", "mount_covered", "proc_of_stranger", "log_size",
        "file_content", "file_differs",
    ),
    "Its addresses and connections": (
        "address_not_on_source", "address_prefix", "address_on_destination", "device_missing",
        "connection_address_missing", "port_taken", "connection_shared", "listener_shared", "peer_stays_behind",
        "peer_on_destination", "new_address_unused", "new_address_moves", "new_address_missing",
        "old_address_missing", "new_address_taken", "new_address_prefix", "new_address_elsewhere",
        "new_gateway_host_network", "new_gateway_unused", "gateway_unreachable", "peer_unreachable",
        "connections_closed", "unaccepted_connections", "address_on_both_hosts", "address_claimed",
        "dumped_ipvlan",
        "address_of_own_network", "link_kind", "link_not_on_host", "link_without_bridge", "bridge_with_vlans",
        "bridge_missing", "mac_taken", "network_name_taken", "link_number_taken",
        "new_mac_host_network", "new_mac_device",
        "ipvlan_missing", "link_mtu", "link_local_in_use",
    ),
    "The hosts": (
        "agents_address_moves", "criu_missing", "criu_too_old", "criu_unusable", "criu_older", "phaul_version",
        "kernel_older", "architecture", "page_size", "cpu_features", "capabilities", "security_label",
        "security_profile", "memory", "huge_pages", "mapping_limit", "open_files_limit", "pid_limit",
        "no_postcopy", "no_memory_tracking", "hook_refused", "policy_memory",
    ),
}  # fmt: skip
OTHER_GROUP = "Other"

# Medians of `make bench` (README.md): 1 GiB took 0.7 s to dump and restore, 1 MiB 45 ms; each further process 7 ms.
FIXED_US = 45_000
PROCESS_US = 7_000
MEMORY_US_PER_GIB = 690_000


def group_of(code: str) -> str:
    """Give the heading that a code belongs under."""
    return next((group for group, codes in GROUPS.items() if code in codes), OTHER_GROUP)


def expected_downtime_us(workload: WorkloadFacts) -> int:
    """Guess how long the workload stands still when all of its memory moves while it does, on a fast link."""
    processes = max(len(workload.tasks) - 1, 0)
    return FIXED_US + processes * PROCESS_US + workload.memory_bytes * MEMORY_US_PER_GIB // GIB


def fine(
    workload: WorkloadFacts, source: HostFacts, destination: DestinationFacts, problems: Sequence[Problem]
) -> tuple[str, ...]:
    """Say in a few words each what was looked at without finding a problem."""
    refused = {problem.code for problem in problems if problem.severity is Severity.REFUSES}
    return tuple(text for codes, text in _looked_at(workload, source, destination) if not refused.intersection(codes))


def _looked_at(
    workload: WorkloadFacts, source: HostFacts, destination: DestinationFacts
) -> Iterator[tuple[tuple[str, ...], str]]:
    host = destination.host
    threads = sum(len(task.thread_ids) for task in workload.tasks)
    own = tuple(code for code in GROUPS["The process"] if code != "ids_taken")
    yield own, f"processes: {len(workload.tasks)} with {threads} threads can be stopped and dumped"
    yield ("ids_taken",), f"numbers: all {threads + len(workload.helper_ids)} are free on {host.host_name}"
    yield GROUPS["Its descriptors"], "descriptors: all of kinds that can be carried, none leads to another process"
    yield GROUPS["Its files"], f"files: {len(workload.files)} are there and alike"
    sockets = len(workload.connections)
    yield GROUPS["Its addresses and connections"], f"sockets: {sockets} of TCP and UDP, with their addresses and ports"
    yield (
        ("criu_missing", "criu_too_old", "criu_unusable", "criu_older"),
        f"CRIU: {source.criu_version} here, {host.criu_version} there",
    )
    if source.cpu_features:
        yield (
            ("cpu_features", "architecture"),
            f"processors: all {len(source.cpu_features)} features are there ({source.architecture})",
        )
    free = format_bytes(host.memory_available_bytes)
    yield ("memory", "huge_pages"), f"memory: {format_bytes(workload.memory_bytes)} to move, {free} free there"
    yield ("mapping_limit", "open_files_limit", "pid_limit", "capabilities", "security_label"), "limits of the kernel"
