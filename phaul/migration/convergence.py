"""After each round of pre-copy: freeze now, go on, slow the workload down, or give up. Pure: no I/O, no clock.

Called by the coordinator's rounds. The user's wish is a downtime, not a number of pages: as soon as the downtime that
`forecast` predicts fits, the workload is frozen. Otherwise another round is made for as long as that helps. When there
has been no new minimum of the predicted downtime for some rounds, pre-copy has stalled, and the user's word decides:

- refuse: nothing is frozen; the user learns what downtime could be had, and what would reach the wish;
- freeze: at the next local minimum, with the longer pause;
- throttle: the workload is slowed step by step; refused when that does not suffice either.

Xen and P.Haul count rounds and pages, QEMU and Cloud Hypervisor compare the predicted downtime with a limit and run
until a timeout; this does what the latter do, and knows when to stop trying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from phaul.migration.facts import OnStall, Problem
from phaul.migration.forecast import Costs, Prediction, Round, predict
from phaul.migration.throttle import STEPS_PERCENT, next_step
from phaul.units import format_bytes, format_rate, format_us

DEFAULT_MAX_DOWNTIME_US = 500_000
DEFAULT_MAX_ROUNDS = 30
LEAST_ROUNDS = 2  # the first sends everything, so that only the second says how fast memory gets dirty
STALL_ROUNDS = 3  # rounds without a new minimum
THROTTLED_STALL_ROUNDS = 1  # the same while the workload is slowed: every round costs its users
LEAST_GAIN = 0.05  # what is not lower by this share is no new minimum
LOCAL_MINIMUM = 1.1  # within this factor of the best of the rounds looked back at
LOOK_BACK_ROUNDS = 6
DEADLINE_MARGIN = 1.5  # a freeze may take so many times what is predicted
HEADROOM = 1.2  # of the --max-downtime and of the link that are recommended
LEAST_EXPONENT = 0.05  # below it the same pages are written whatever the speed


class Action(StrEnum):
    """What to do after a round."""

    ANOTHER_ROUND = "another_round"
    FREEZE = "freeze"
    THROTTLE = "throttle"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Contract:
    """What the user said."""

    max_downtime_us: int = DEFAULT_MAX_DOWNTIME_US
    max_rounds: int = DEFAULT_MAX_ROUNDS
    on_stall: OnStall = OnStall.REFUSE


@dataclass(frozen=True, slots=True)
class Remedy:
    """What would reach the wish, each by itself; None where it would not."""

    max_downtime_us: int  # a wish that could be met
    bandwidth_bytes_per_second: int | None  # on the wire
    throttle_percent: int | None  # of the workload's own speed


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next, and why.

    `reason` is a clause without a full stop for the person who watches.
    """

    action: Action
    reason: str
    prediction: Prediction
    best_us: int  # the lowest prediction so far at the present speed
    throttle_to_percent: int = 100  # with THROTTLE
    remedy: Remedy | None = None  # with REFUSE


def refusal(contract: Contract) -> Problem | None:
    """Say in preflight why this contract cannot be had at all."""
    if contract.on_stall is OnStall.POSTCOPY:
        return Problem(
            "no_postcopy",
            "`--on-stall postcopy` is not built: the copy would run before its memory has arrived",
            "Choose refuse, freeze or throttle.",
        )
    return None


def decide(
    rounds: Sequence[Round],
    contract: Contract,
    costs: Costs,
    *,
    time_left_us: int | None = None,
    speed_percent: int = 100,
) -> Decision:
    """Say what to do after the last of `rounds` (oldest first, at least one).

    Args:
        time_left_us: until the deadline of the whole migration; None: there is none.
        speed_percent: what a throttle leaves the workload now; 100: not slowed.
    """
    prediction = predict(rounds, costs)
    history = predictions(rounds, costs)
    best_us = min(history[len(rounds) - _since_change(rounds) :])
    over = _is_over(rounds, contract, prediction, time_left_us)
    if prediction.downtime_us <= contract.max_downtime_us and (over or len(rounds) >= LEAST_ROUNDS):
        return Decision(Action.FREEZE, _fits(prediction, contract), prediction, best_us)
    if not over and (len(rounds) < LEAST_ROUNDS or rounds[-1].speed_percent != speed_percent):
        reason = "only a second round shows how fast memory changes"
        if len(rounds) >= LEAST_ROUNDS:
            reason = f"to see what {speed_percent} % of its speed does"
        return Decision(Action.ANOTHER_ROUND, reason, prediction, best_us)
    hopeless = prediction.fixed_us > contract.max_downtime_us and contract.on_stall is not OnStall.FREEZE
    stalled = over or ("no round can help" if hopeless else _is_stalled(rounds, history, speed_percent))
    if not stalled:
        return Decision(Action.ANOTHER_ROUND, _above(prediction, contract), prediction, best_us)
    return _stalled(rounds, history, contract, prediction, best_us, stalled, bool(over), speed_percent)


def predictions(rounds: Sequence[Round], costs: Costs) -> list[int]:
    """Give the downtime that was to be expected after each round, by what is known of the costs today."""
    return [predict(rounds[: count + 1], costs).downtime_us for count in range(len(rounds))]


def remedy_for(prediction: Prediction, best_us: int, wish_us: int, speed_percent: int = 100) -> Remedy:
    """Say what would bring the downtime down to the wish."""
    budget_us = wish_us - prediction.fixed_us
    bandwidth = throttle = None
    if budget_us > 0 and prediction.pages_us > 0:
        bandwidth = round(HEADROOM * prediction.dirty_bytes * prediction.wire_share * 1e6 / budget_us)
        if prediction.exponent > LEAST_EXPONENT:
            # At a share s of its speed a workload writes in t what it would have written in s * t.
            share = min(1.0, budget_us / prediction.pages_us) ** (1 / prediction.exponent)
            throttle = int(share * speed_percent) or None
    return Remedy(_rounded_up(round(best_us * HEADROOM)), bandwidth, throttle)


def explain(decision: Decision, contract: Contract) -> tuple[str, str]:
    """Give the message and the hint of the error for a decision to REFUSE."""
    prediction, remedy = decision.prediction, decision.remedy
    message = (
        f"The workload would stand still for about {format_us(decision.best_us)}, longer than the "
        f"{format_us(contract.max_downtime_us)} wished for: {decision.reason}"
    )
    ways = []
    if remedy is not None:
        ways.append(f"--max-downtime {remedy.max_downtime_us // 1000}ms")
        if remedy.bandwidth_bytes_per_second is not None:
            ways.append(
                f"a link that carries {format_rate(remedy.bandwidth_bytes_per_second)} "
                f"(now {format_rate(prediction.throughput_bytes_per_second * prediction.wire_share)})"
            )
        slow_enough = remedy.throttle_percent is not None and remedy.throttle_percent >= STEPS_PERCENT[-1]
        if slow_enough and contract.on_stall is not OnStall.THROTTLE:
            ways.append(f"--on-stall throttle (down to about {remedy.throttle_percent} % of its speed)")
    hint = f"What would do: {', or '.join(ways)}. `--on-stall freeze` takes the longer pause." if ways else ""
    return message, hint


def _stalled(
    rounds: Sequence[Round],
    history: Sequence[int],
    contract: Contract,
    prediction: Prediction,
    best_us: int,
    reason: str,
    over: bool,
    speed_percent: int,
) -> Decision:
    remedy = remedy_for(prediction, best_us, contract.max_downtime_us, speed_percent)
    if contract.on_stall is OnStall.FREEZE:
        lately = min(history[-LOOK_BACK_ROUNDS:])
        if over or prediction.downtime_us <= lately * LOCAL_MINIMUM:
            return Decision(Action.FREEZE, f"{reason}; {_above(prediction, contract)}", prediction, best_us)
        return Decision(Action.ANOTHER_ROUND, f"{reason}; waiting for a better moment", prediction, best_us)
    if contract.on_stall is OnStall.THROTTLE and not over and prediction.fixed_us <= contract.max_downtime_us:
        step = next_step(speed_percent, remedy.throttle_percent)
        if step is not None:
            return Decision(Action.THROTTLE, reason, prediction, best_us, throttle_to_percent=step)
        reason = f"not even {speed_percent} % of its speed is slow enough"
    if prediction.fixed_us > contract.max_downtime_us:
        reason = f"freezing and restoring alone take {format_us(prediction.fixed_us)} between these hosts"
    else:
        reason += f", and {format_bytes(prediction.dirty_bytes)} would be left to send"
    return Decision(Action.REFUSE, reason, prediction, best_us, remedy=remedy)


def _since_change(rounds: Sequence[Round]) -> int:
    """How many rounds there were since the speed was changed last; the first, which sends everything, aside."""
    count = 0
    for each in reversed(rounds):
        if each.speed_percent != rounds[-1].speed_percent:
            break
        count += 1
    return max(1, count - 1) if count == len(rounds) else count


def _is_stalled(rounds: Sequence[Round], history: Sequence[int], speed_percent: int) -> str:
    patience = STALL_ROUNDS if speed_percent >= 100 else THROTTLED_STALL_ROUNDS
    lately = history[len(rounds) - _since_change(rounds) :]
    lowest, at = lately[0], 0
    for index, downtime_us in enumerate(lately):
        if downtime_us < lowest * (1 - LEAST_GAIN):
            lowest, at = downtime_us, index
    since = len(lately) - 1 - at
    if since < patience:
        return ""
    return "the last round did not help" if since == 1 else f"the last {since} rounds did not help"


def _is_over(rounds: Sequence[Round], contract: Contract, prediction: Prediction, time_left_us: int | None) -> str:
    if len(rounds) >= contract.max_rounds:
        return f"{len(rounds)} rounds were made" if len(rounds) > 1 else "one round was made"
    if time_left_us is not None:
        needed_us = prediction.interval_us + prediction.downtime_us * DEADLINE_MARGIN
        if needed_us > time_left_us:
            return "the time allowed leaves none for another round"
    return ""


def _fits(prediction: Prediction, contract: Contract) -> str:
    return f"{format_us(prediction.downtime_us)} expected, {format_us(contract.max_downtime_us)} allowed"


def _above(prediction: Prediction, contract: Contract) -> str:
    return f"{format_us(prediction.downtime_us)} expected, more than {format_us(contract.max_downtime_us)}"


def _rounded_up(microseconds: int) -> int:
    """To 10 ms, above a second to 100 ms."""
    step = 10_000 if microseconds < 1_000_000 else 100_000
    return -(-microseconds // step) * step
