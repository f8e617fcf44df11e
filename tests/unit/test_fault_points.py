"""Fault points: read from the environment, and off without it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from phaul.errors import UsageError
from phaul.observe import fault_points
from phaul.observe.fault_points import FaultPoint


def test_what_the_variable_says() -> None:
    assert FaultPoint.parse("source.commit:kill") == FaultPoint("source", "commit", signal.SIGKILL)
    assert FaultPoint.parse("destination.restore:stop") == FaultPoint("destination", "restore", signal.SIGSTOP)
    assert FaultPoint.parse("source.switchover:pause:0.5") == FaultPoint("source", "switchover", None, 0.5)


@pytest.mark.parametrize(
    "text", ["commit:kill", "source.commit", "source.commit:burn", "source.commit:pause:", ":kill"]
)
def test_what_names_no_fault_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=fault_points.VARIABLE):
        FaultPoint.parse(text)


async def test_only_at_its_point(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setenv(fault_points.VARIABLE, "source.commit:kill")
    reached = fault_points.from_environment()
    await reached("destination", "commit")
    await reached("source", "resume")
    assert not sent
    await reached("source", "commit")
    assert sent == [(os.getpid(), signal.SIGKILL)]


async def test_a_pause_lets_others_go_on() -> None:
    began = time.monotonic()
    await FaultPoint.parse("source.commit:pause:0.02").reached("source", "commit")
    assert time.monotonic() - began >= 0.02


async def test_off_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fault_points.VARIABLE, raising=False)
    assert fault_points.from_environment() is fault_points.nothing
