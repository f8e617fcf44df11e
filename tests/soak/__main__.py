"""`python -m tests.soak` (`make soak`): 200 moves of a Redis under load, every fourth with a random fault.

`--network` (`make soak-network`) moves connections of every kind of network instead; see `network`.

Bounded to 20 minutes. Prints the seed, each fault and what became of it, and the account in the end; exits 1 when
anything was lost, done twice or left behind. Needs root, and the lab.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from phaul.errors import PhaulError
from phaul.lab.cluster import Lab
from phaul.lab.host import AGENT_LOG

from . import network
from .soak import FAULT_EVERY, Outcome, Soak

MOVES = 200
LIMIT_SECONDS = 19 * 60.0  # of 20: the last move and the end take some too
SEEDS = 1_000_000
LOG_BYTES = 5000


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="a Redis moves back and forth for long")
    parser.add_argument("--moves", type=int, default=MOVES, help=f"how often ({MOVES})")
    parser.add_argument(
        "--network", action="store_true", help="connections of every kind of network instead of a Redis"
    )
    parser.add_argument("--fault-every", type=int, default=FAULT_EVERY, help=f"one move in so many ({FAULT_EVERY})")
    parser.add_argument("--minutes", type=float, default=LIMIT_SECONDS / 60, help="of --network, at most")
    parser.add_argument("--seed", type=int, help="draws the faults and their moments; a new one is printed")
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.randrange(SEEDS)
    return arguments


def tell(outcome: Outcome, seconds: float) -> None:
    """Print the account."""
    met = ", ".join(f"{count} {fault}" for fault, count in sorted(outcome.faults.items()))
    print(f"{outcome.moves} moves in {seconds:.0f} s, {outcome.completed} completed")
    print(f"faults: {outcome.faults.total()} ({met}), of which {outcome.too_late} came too late to break anything")
    print(f"{outcome.values} values, longest pause {outcome.longest_gap_seconds:.2f} s")
    print(f"an agent grew by at most {outcome.grown_bytes / (1 << 20):.1f} MiB")
    for wrong in outcome.wrong:
        print(f"WRONG: {wrong}")
    if not outcome.wrong:
        print("no value lost, no tick twice, nothing left behind")


def soak_network(seed: int, moves: int, limit_seconds: float) -> int:
    """The soak of connections."""
    with Lab.up(f"soak-{os.getpid()}") as lab:
        outcome = network.run(lab, seed, moves, lambda line: print(line, flush=True), limit_seconds=limit_seconds)
    print(outcome.described())
    for wrong in outcome.wrong:
        print(f"WRONG: {wrong}")
    if not outcome.wrong:
        print("no reset, no block lost or doubled, no address claimed twice, nothing left behind")
    return 1 if outcome.wrong else 0


def show_logs(lab: Lab) -> None:
    """What the agents said last."""
    for host in lab.hosts.values():
        print(f"--- the agent's log of {host.name}")
        print(host.path(AGENT_LOG).read_text()[-LOG_BYTES:])


def main() -> int:
    """Soak; give the exit status."""
    arguments = parse_arguments()
    print(f"seed {arguments.seed}", flush=True)
    if arguments.network:
        return soak_network(arguments.seed, arguments.moves, arguments.minutes * 60)
    began = time.monotonic()
    try:
        with Lab.up(f"soak-{os.getpid()}") as lab:
            soak = Soak(lab, arguments.seed, lambda line: print(line, flush=True))
            outcome = soak.outcome
            try:
                soak.run(arguments.moves, arguments.fault_every, LIMIT_SECONDS)
            finally:
                if outcome.wrong:
                    show_logs(lab)
    except PhaulError as error:
        print(f"the soak could not go on: {error}", *outcome.wrong, sep="\n")
        return 1
    tell(outcome, time.monotonic() - began)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
