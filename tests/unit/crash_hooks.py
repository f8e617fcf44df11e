"""The hooks of a world in which agents are killed: at which stages there are any, and what must have run at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from phaul.migration.facts import HookFacts
from phaul.migration.hooks import AFTER_THE_DECISION, Stage

HOOKS = [
    HookFacts(stage, f"/{stage}", timeout_seconds=1.0)
    for stage in (Stage.PRE_DUMP, Stage.SETUP_NAMESPACES, Stage.SWITCHOVER, *AFTER_THE_DECISION)
]


def ran_as_it_ended(told: Sequence[Mapping[str, str]], ending: Stage) -> bool:
    """Whether the hooks of how it ended have run, once but for those that say so, and those of the other end have not.

    `told`: the environments of all that one host has run.
    """
    last = [each for each in told if each["PHAUL_STAGE"] in AFTER_THE_DECISION]
    once = sum("PHAUL_REPEATED" not in each for each in last) <= 1
    return once and {each["PHAUL_STAGE"] for each in last} == {ending}
