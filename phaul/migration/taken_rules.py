"""What the workload needs and somebody else has on the destination: numbers, ports, names, terminals. Pure.

Called by `preflight`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from phaul.migration.facts import ConnectionFacts, DestinationFacts, Problem, WorkloadFacts

LISTED = 5


def wanted_ids(workload: WorkloadFacts) -> tuple[int, ...]:
    """Give every number that must be free on the destination: PIDs, thread IDs, and those of helpers."""
    threads = [number for task in workload.tasks for number in (task.pid, *task.thread_ids)]
    return tuple(dict.fromkeys([*threads, *workload.helper_ids]))


def id_problems(workload: WorkloadFacts, destination: DestinationFacts) -> Iterator[Problem]:
    """Say which numbers are in use."""
    owners = {number: task for task in workload.tasks for number in (task.pid, *task.thread_ids)}
    taken = sorted(set(destination.taken_ids) & set(wanted_ids(workload)))
    if not taken:
        return
    named: list[str] = []
    for number in taken[:LISTED]:
        owner = owners.get(number)
        if owner is None:
            named.append(f"{number} (a session, group or process that has ended)")
        else:
            named.append(f"{number} ({owner.command}{'' if number == owner.pid else ', a thread'})")
    host = destination.host.host_name
    yield Problem(
        "ids_taken",
        f"The workload keeps its process and thread IDs, and on the destination {host} these are in use: "
        f"{_listed(named, len(taken))}.",
        f"`ps -eLo pid,tid,pgid,sid,comm` on {host} shows by what: end that, or restart the workload to get other IDs.",
    )


def occupied_problems(workload: WorkloadFacts, destination: DestinationFacts) -> Iterator[Problem]:
    """Say which ports, names of Unix sockets and terminals are in use."""
    host = destination.host.host_name
    ports = [] if workload.has_own_network else _taken_ports(workload.connections, destination.occupied.sockets)
    if ports:
        yield Problem(
            "port_taken",
            f"On {host} somebody else listens where the workload does: {_listed(ports, len(ports))}.",
            f"`ss -lntup` on {host} shows who: end it there (the same service, perhaps?), then migrate.",
        )
    names = sorted(set(workload.unix_names) & set(destination.occupied.unix_names))
    if names:
        yield Problem(
            "unix_name_taken",
            f"On {host} somebody else has a Unix socket with the name of the workload's: {_listed(names, len(names))}.",
            f"`ss -lxp` on {host} shows who: end it there (the same service, perhaps?), then migrate.",
        )
    terminals = sorted(set(workload.terminals) & set(destination.occupied.terminals))
    if terminals:
        paths = [f"/dev/pts/{number}" for number in terminals]
        yield Problem(
            "terminal_taken",
            f"The workload's terminals keep their numbers, and on {host} these are in use: "
            f"{_listed(paths, len(paths))}.",
            f"`fuser -v {paths[0]}` on {host} shows by whom: close it, or start the workload's terminal again.",
        )
    if not workload.has_own_network and destination.host.devices:
        missing = [name for name in workload.bound_devices if name not in destination.host.devices]
        if missing:
            yield Problem(
                "socket_device_missing",
                f"A socket of the workload is bound to a network device that {host} does not have: "
                f"{_listed(missing, len(missing))}.",
                f"Make the device on {host}, or let the program bind to an address instead.",
            )


def _taken_ports(mine: Sequence[ConnectionFacts], theirs: Sequence[ConnectionFacts]) -> list[str]:
    # A single socket of IPv6 may serve IPv4 too; beside one of IPv4 with that port it cannot.
    beside = {(each.protocol, each.local_port) for each in mine if _version(each) == 4}
    found: list[str] = []
    for each in mine:
        serves = each.state == "listen" if each.protocol == "tcp" else not each.remote_port
        if not each.local_port or not serves:
            continue
        for other in theirs:
            same = (each.protocol, each.local_port) == (other.protocol, other.local_port)
            if same and _overlap(each, other, (each.protocol, each.local_port) in beside):
                found.append(f"{each.protocol} {each.local_address} port {each.local_port}")
                break
    return list(dict.fromkeys(found))


def _overlap(mine: ConnectionFacts, theirs: ConnectionFacts, only_six: bool) -> bool:
    one, other = ipaddress.ip_address(mine.local_address), ipaddress.ip_address(theirs.local_address)
    if one.version == other.version:
        return one == other or one.is_unspecified or other.is_unspecified
    wide = one if one.version == 6 else other
    return wide.is_unspecified and not (wide is one and only_six)


def _version(each: ConnectionFacts) -> int:
    return ipaddress.ip_address(each.local_address).version


def _listed(words: Sequence[str], count: int) -> str:
    more = f" and {count - LISTED} more" if count > LISTED else ""
    return f"{', '.join(words[:LISTED])}{more}"
