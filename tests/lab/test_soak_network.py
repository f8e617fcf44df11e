"""A short soak of connections: four moves, judged by a capture at the client. `make soak-network` goes on for 200."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from phaul.lab.cluster import Lab
from tests.soak import network

from .conftest import unique_name

SEED = 1  # each of the three workloads moves
MOVES = 4
SLOWEST_MS = 3000  # a loaded machine; `make soak-network` tells what a quiet one takes


@pytest.fixture
def fresh_lab() -> Iterator[Lab]:
    with Lab.up(unique_name("soak")) as lab:
        yield lab


def test_four_moves(fresh_lab: Lab) -> None:
    outcome = network.run(fresh_lab, SEED, MOVES)
    assert not outcome.wrong, outcome.wrong
    assert outcome.moves == MOVES
    assert outcome.blocks > 0
    assert max(outcome.first_ms) < SLOWEST_MS, outcome.described()
    print(outcome.described())
