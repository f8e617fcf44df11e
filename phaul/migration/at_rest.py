"""A dump: a migration whose destination is a directory of the same host. What that changes in what is judged. Pure.

Called by `preflight` and by `agent.store_peer`. No TCP connection is in a dump: whoever talks to the workload would not
wait until somebody restores it. CRIU leaves them alone meanwhile (`tcp_close`), so that a workload that goes on keeps
them, and one that is ended closes them as any process that ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from phaul.migration.address_rules import listed, normal, worded
from phaul.migration.facts import DIRECTORY, ClaimFacts, MigrationRequest, Problem, Severity, WorkloadFacts
from phaul.migration.new_addresses import is_closed
from phaul.migration.own_network import is_left_out

ABOUT_CONNECTIONS = ("connections_closed", "unaccepted_connections")  # what is said of them here instead


def destination_of(path: str) -> str:
    """Name a directory, by its absolute path, as the destination of a migration."""
    return DIRECTORY + path.removeprefix("/")


def directory_of(destination: str) -> str | None:
    """The opposite; None for a host."""
    return "/" + destination.removeprefix(DIRECTORY) if destination.startswith(DIRECTORY) else None


def judged(request: MigrationRequest, workload: WorkloadFacts, found: Sequence[Problem]) -> list[Problem]:
    """Of what was found, give what concerns this request, and say what becomes of connections in a dump."""
    if not request.at_rest:
        return list(found)
    left = [each for each in found if each.code not in ABOUT_CONNECTIONS]
    closed = [each for each in workload.connections if is_closed(each)]
    if closed:
        count = f"{len(closed)} TCP {'connection' if len(closed) == 1 else 'connections'}"
        named = listed(map(worded, closed))
        left.append(
            Problem(
                "connections_closed",
                f"{count} will not be in the dump, and go on here: {named}."
                if request.leave_running
                else f"{count} will end with the workload, as no dump has any: {named}.",
                "A copy that is restored has none of them."
                if request.leave_running
                else "Their peers are told, and may connect again once it is restored.",
                Severity.WARNS,
            )
        )
    return left


def as_kept(workload: WorkloadFacts) -> WorkloadFacts:
    """What a dump says of its workload: all that its copy will need."""
    kept = tuple(replace(each, unaccepted=0) for each in workload.connections if not is_closed(each))
    return replace(workload, connections=kept)


def advised(problems: Sequence[Problem], host: str) -> tuple[Problem, ...]:
    """The same, with what to do about them where a dump is restored and nothing is migrated."""
    hints = {
        "ids_taken": "Is it the workload itself, left running, or another copy? End that one, or restore the dump on "
        "another host.",
        "connection_address_missing": f"Put that address on a device of {host}, or give the copy one that is there: "
        "--new-address OLD=NEW.",
    }
    return tuple(replace(each, hint=hints.get(each.code, each.hint)) for each in problems)


def claim_problems(claims: Sequence[ClaimFacts], arriving: WorkloadFacts, directory: str) -> tuple[Problem, ...]:
    """Say which addresses of a copy somebody has, and whether who was dumped still has its MAC.

    In a migration the workload itself may answer. Here nobody may: it is who was left running, or another copy.

    Args:
        claims: to the addresses that the copy would have, and to those that the workload had.
        arriving: the workload as the copy will be.
    """
    links = arriving.network.links if arriving.network else ()
    wanted = {normal(address.partition("/")[0]) for link in links for address in link.addresses}
    own = {link.mac for link in links}
    found: list[Problem] = []
    for claim in claims:
        if normal(claim.address) in wanted:
            found.append(
                Problem(
                    "address_claimed",
                    f"The address {claim.address}, which the copy would have, is claimed by {claim.mac}.",
                    "Is it the workload itself, left running, or another copy? End that one, or give this one "
                    f"another: `phaul restore {directory} --new-address {claim.address}=NEW --new-mac MAC`.",
                )
            )
        elif claim.mac in own:
            found.append(
                Problem(
                    "mac_taken",
                    f"The MAC {claim.mac}, which the copy would have, is in use: {claim.address} answers with it.",
                    "Give the copy another: `--new-mac MAC`.",
                )
            )
    return tuple(dict.fromkeys(found))


def identity_problems(request: MigrationRequest, workload: WorkloadFacts) -> tuple[Problem, ...]:
    """Say what of a new identity cannot be had because the dump was made without it."""
    if not is_left_out(workload.network) or not (request.new_addresses or request.new_gateways):
        return ()
    return (
        Problem(
            "dumped_ipvlan",
            "The copy's network namespace has an ipvlan, whose addresses are in the dump as they were.",
            "Leave out --new-address; or give it another address by migrating it.",
        ),
    )
