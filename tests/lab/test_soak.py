"""A short soak: twelve moves of a Redis under load, three of them with a fault. `make soak` goes on for 200."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from phaul.lab.cluster import Lab
from tests.soak.soak import Soak

from .conftest import unique_name

SEED = 1
MOVES = 12
FAULTS = 3


@pytest.fixture
def fresh_lab() -> Iterator[Lab]:
    with Lab.up(unique_name("soak")) as lab:
        yield lab


def test_twelve_moves_with_three_faults(fresh_lab: Lab) -> None:
    told: list[str] = []
    outcome = Soak(fresh_lab, SEED, told.append).run(MOVES)
    assert not outcome.wrong, (outcome.wrong, told)
    assert outcome.moves == MOVES
    assert outcome.faults.total() == FAULTS
    assert outcome.completed >= MOVES - FAULTS
