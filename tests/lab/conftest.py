"""Labs for tests with real CRIU. Skips, with the reason, only where namespaces cannot be made: never for root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from phaul.lab import machine
from phaul.lab.cluster import Lab

from .stage import Stage

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test below this directory, and skip it where there can be no lab."""
    reason = machine.missing()
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.lab)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def unique_name(use: str) -> str:
    """A lab's name that no other test process of this machine has."""
    return f"test-{use}-{os.getpid()}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with agents, for the tests of one module."""
    with Lab.up(unique_name("agents")) as up:
        yield up


@pytest.fixture(scope="module")
def bare_lab() -> Iterator[Lab]:
    """A lab without agents, for the tests of one module."""
    with Lab.up(unique_name("bare"), agents=False) as up:
        yield up


@pytest.fixture
def stage(lab: Lab) -> Iterator[Stage]:
    """The lab for one test that migrates; both hosts must be as before when it has ended."""
    with Stage(lab) as set_up:
        yield set_up
