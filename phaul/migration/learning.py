"""What migrations have taught of this host and another, kept for the predictions of the next, on both of them.

Used by `rounds` on the source, by `agent.peer_service` on the destination, and by `phaul dirty-rate`. Hosts go by the
name that they give themselves: what was typed may be a name today and an address tomorrow.
"""

from __future__ import annotations

import dataclasses

from phaul.migration.forecast import OUTCOMES_KEPT, Outcome
from phaul.migration.interfaces import OutcomeStore


async def known(store: OutcomeStore, other_host: str) -> tuple[Outcome, ...]:
    """What is known, oldest first."""
    return tuple(Outcome.from_data(dict(each)) for each in await store.of(other_host))


async def learn(store: OutcomeStore, other_host: str, outcome: Outcome) -> None:
    """Keep one more."""
    kept = [*await known(store, other_host), outcome][-OUTCOMES_KEPT:]
    await store.keep(other_host, [each.as_data() for each in kept])


async def learn_from_arrival(store: OutcomeStore, other_host: str, outcome: Outcome) -> None:
    """Keep one of a migration that came from there: it says something of the way back too."""
    await learn(store, other_host, dataclasses.replace(outcome, back=True))
