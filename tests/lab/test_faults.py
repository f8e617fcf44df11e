"""A third of the fault matrix, always the same one; `python -m tests.lab.faults` runs all of it.

Left out are the cells that wait for half a minute; of each fault that is met in several phases, every third phase is
in, and each of the nine phases is in with several faults.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from phaul.lab.cluster import Lab

from .conftest import unique_name
from .faults import table
from .faults.matrix import CELLS, Cell, Fault
from .faults.runner import Runner

TAKE_LONG = (Fault.CUT, Fault.CUT_FOR_GOOD, Fault.SLOW)
EVERY = 3
QUICK = [cell for cell in CELLS if cell.fault not in TAKE_LONG]
CHOSEN = QUICK[::EVERY]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Lab.up(unique_name("faults")) as lab:
        yield Runner(lab)


@pytest.mark.parametrize("cell", CHOSEN, ids=str)
def test_exactly_one_copy_goes_on(runner: Runner, cell: Cell) -> None:
    result = runner.run(cell)
    assert result.safe, table.line(result)
    assert result.connection.startswith("alive"), table.line(result)
    assert not result.left, table.line(result)
