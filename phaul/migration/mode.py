"""How the memory goes: in rounds while the workload runs, or all of it in the freeze. Pure.

Used by preflight, which refuses what one of the hosts cannot do, and by the coordinator, which says what was chosen.
"""

from __future__ import annotations

from phaul.migration.convergence import DEFAULT_MAX_DOWNTIME_US, DEFAULT_MAX_ROUNDS, Contract, refusal
from phaul.migration.facts import HostFacts, MigrationRequest, Mode, Problem, WorkloadFacts
from phaul.units import MIB, format_bytes

TRACKING = "mem_track"  # CRIU's name for it, in `HostFacts.features`
NOT_WORTH_A_ROUND_BYTES = 16 * MIB  # goes within some ten milliseconds: a round stands still for nearly as long


def choose(request: MigrationRequest, workload: WorkloadFacts, source: HostFacts) -> tuple[Mode, str]:
    """Give the mode, and why, in one sentence."""
    if request.mode is not Mode.AUTO:
        return request.mode, "as asked for"
    if TRACKING not in source.features:
        return Mode.STOP_AND_COPY, f"{source.host_name}'s kernel cannot track which memory is written"
    if workload.memory_bytes < NOT_WORTH_A_ROUND_BYTES:
        return Mode.STOP_AND_COPY, f"{format_bytes(workload.memory_bytes)} go as fast in the freeze"
    return Mode.PRE_COPY, "memory goes while the workload runs, until what remains fits into the downtime wished for"


def contract_of(request: MigrationRequest) -> Contract:
    """What the person wishes, with the defaults for what was not said."""
    return Contract(
        round(request.max_downtime_seconds * 1e6) or DEFAULT_MAX_DOWNTIME_US,
        request.max_rounds or DEFAULT_MAX_ROUNDS,
        request.on_stall,
    )


def problems(request: MigrationRequest, source: HostFacts) -> tuple[Problem, ...]:
    """What was asked for and cannot be had."""
    impossible = refusal(contract_of(request))
    if impossible is not None:
        return (impossible,)
    if request.mode is Mode.PRE_COPY and TRACKING not in source.features:
        return (
            Problem(
                "no_memory_tracking",
                f"pre-copy was asked for, and {source.host_name}'s kernel ({source.kernel_release}, "
                f"{source.architecture}) cannot track which memory is written",
                "Leave --mode away; or boot a kernel with CONFIG_MEM_SOFT_DIRTY, as Debian's for amd64.",
            ),
        )
    return ()
