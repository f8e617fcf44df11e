"""The virtual machines that the tests here share: brought up once, with the checkout's code and agents as services."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from phaul.lab import machine
from phaul.lab.cluster import Lab
from tests.lab.witness import Witness

from .machines import set_up

TIMEOUT_SECONDS = 900  # the longest test takes half a minute where nobody else needs the processors

LONG_VARIABLE = "PHAUL_LONG_TESTS"  # not empty: those that take minutes are run too
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test below this directory, and skip it where there can be no virtual machines."""
    reason = machine.missing(virtual=True)
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))
            if item.get_closest_marker("long") and not os.environ.get(LONG_VARIABLE):
                item.add_marker(pytest.mark.skip(reason="takes minutes: `make test-long` runs it"))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def machines() -> Iterator[Lab]:
    """Two virtual machines with agents."""
    with Lab.up(f"test-vm-{os.getpid()}", virtual=True) as up:
        for host in up.members:
            set_up(host)
        yield up


@pytest.fixture
def witness(machines: Lab) -> Iterator[Witness]:
    """The recorder of ticks, on the client."""
    recording = Witness(machines.client)
    yield recording
    recording.close()
