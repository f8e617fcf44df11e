"""What several unit tests start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.process_trees import Start, starting


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """See `process_trees.starting`."""
    with starting(tmp_path) as run:
        yield run
