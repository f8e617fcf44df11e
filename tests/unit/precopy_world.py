"""A workload that writes, a link, and two hosts, in numbers: what a pre-copy between them would measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from phaul.migration.convergence import Action, Contract, Decision, decide
from phaul.migration.forecast import Costs, Outcome, Round, costs_of, outcome_of
from phaul.units import MIB


@dataclass
class World:
    """A pre-copy as it would go. Time is in microseconds, `speed` the share that a throttle leaves the workload."""

    memory_bytes: int = 256 * MIB
    hot_bytes: int = 32 * MIB  # the pages that are written again and again
    bytes_per_second: float = 40 * MIB  # written, to any of them
    link_bytes_per_second: float = 400 * MIB
    round_us: int = 60_000  # what a round costs besides its pages
    frozen_us: int = 4_000
    freeze_us: int = 30_000
    restore_us: int = 60_000
    noise: Callable[[], float] = lambda: 1.0
    burst: Callable[[int], float] = lambda number: 1.0  # how much faster it writes before a round
    rounds: list[Round] = field(default_factory=list)
    speed_percent: int = 100
    change_percent: int = 100  # speed as the last interval began

    def dirty_bytes(self, interval_us: float, speed_percent: float) -> int:
        """The working-set curve: random writes to the hot pages."""
        if self.hot_bytes == 0:
            return 0
        written = self.bytes_per_second * self.burst(len(self.rounds) + 1) * speed_percent / 100 * interval_us / 1e6
        return round(self.hot_bytes * (1 - math.exp(-written / self.hot_bytes)) * self.noise())

    def run_round(self) -> None:
        """Make one more round."""
        if not self.rounds:
            interval_us, page_bytes = 0, self.memory_bytes
        else:
            interval_us = self.rounds[-1].send_us + 5_000
            page_bytes = self.dirty_bytes(interval_us, self.change_percent)
        send_us = round((self.round_us + page_bytes * 1e6 / self.link_bytes_per_second) * self.noise())
        self.rounds.append(
            Round(
                len(self.rounds) + 1,
                page_bytes,
                page_bytes,
                send_us,
                round(self.frozen_us * self.noise()),
                interval_us,
                self.change_percent,
            )
        )
        self.change_percent = self.speed_percent

    def freeze(self) -> tuple[int, int, int]:
        """Content of pages of the final dump, how long it takes, and the downtime."""
        page_bytes = self.dirty_bytes(self.rounds[-1].send_us + 5_000, self.speed_percent)
        dump_us = round((self.freeze_us + page_bytes * 1e6 / self.link_bytes_per_second) * self.noise())
        return page_bytes, dump_us, dump_us + round(self.restore_us * self.noise())

    def costs(self, outcomes: Sequence[Outcome] = ()) -> Costs:
        """What is known of this world after its rounds."""
        return costs_of(self.rounds, self.memory_bytes, outcomes)

    def true_costs(self) -> Costs:
        """What it is like."""
        return Costs(self.memory_bytes, self.freeze_us, self.restore_us, 0.0)

    def run(self, contract: Contract, costs: Costs | None = None, outcomes: Sequence[Outcome] = ()) -> Decision:
        """Do as `decide` says until it ends; a decision beyond `max_rounds` is a failure."""
        while True:
            self.run_round()
            decision = decide(self.rounds, contract, costs or self.costs(outcomes), speed_percent=self.speed_percent)
            if decision.action in (Action.FREEZE, Action.REFUSE):
                return decision
            if decision.action is Action.THROTTLE:
                assert decision.throttle_to_percent < self.speed_percent
                self.speed_percent = decision.throttle_to_percent
            assert len(self.rounds) < contract.max_rounds

    def outcome(self) -> tuple[int, Outcome]:
        """Freeze; give the downtime and what it teaches."""
        page_bytes, dump_us, downtime_us = self.freeze()
        learnt = outcome_of(
            self.rounds,
            memory_bytes=self.memory_bytes,
            page_bytes=page_bytes,
            dump_us=dump_us,
            downtime_us=downtime_us,
        )
        assert learnt is not None
        return downtime_us, learnt
