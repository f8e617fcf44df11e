"""How much of the link a migration takes, and how fast the link is."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.transfer.pacing import PACING_RATE_OPTION, SHARE_WHILE_RUNNING, UNPACED, link_speed, pace_for, set_pace

GIGABIT = 125_000_000
LINKS = st.none() | st.integers(1, 10**11)


@given(st.integers(1, 10**11), LINKS, st.booleans())
def test_what_was_asked_for_always_counts(asked: int, link: int | None, frozen: bool) -> None:
    assert pace_for(asked, link, frozen=frozen) == asked


@given(LINKS)
def test_nothing_slows_a_frozen_workload_by_itself(link: int | None) -> None:
    assert pace_for(0, link, frozen=True) is None


@given(st.integers(1000, 10**11))
def test_a_fifth_of_the_link_is_left_while_the_workload_runs(link: int) -> None:
    assert pace_for(0, link, frozen=False) == int(link * SHARE_WHILE_RUNNING)


def test_a_link_of_unknown_speed_is_not_capped() -> None:
    assert pace_for(0, None, frozen=False) is None


def test_the_kernel_takes_the_rate_and_lifts_it() -> None:
    with socket.socket() as connection:
        for rate in (GIGABIT, 7 * 10**9, None):
            set_pace(connection, rate)
            told = connection.getsockopt(socket.SOL_SOCKET, PACING_RATE_OPTION, 8)
            assert int.from_bytes(told, "little") == (UNPACED if rate is None else rate)


def device(devices: Path, name: str, *below: str, speed: str = "", physical: bool = False) -> None:
    path = devices / name
    path.mkdir()
    (path / "speed").write_text(speed)
    for lower in below:
        (path / f"lower_{lower}").symlink_to(f"../{lower}")
    if physical:
        (path / "device").mkdir()


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    device(tmp_path, "eth0", speed="1000\n", physical=True)
    device(tmp_path, "eth1", speed="10000\n", physical=True)
    device(tmp_path, "down", speed="-1\n", physical=True)
    device(tmp_path, "virtio", speed="", physical=True)
    device(tmp_path, "veth", speed="10000\n")
    device(tmp_path, "bond0", "eth0", "eth1", speed="11000\n")
    device(tmp_path, "vlan7", "bond0", speed="11000\n")
    device(tmp_path, "bridge", "eth1", "veth", speed="10000\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "speed"),
    [
        ("eth0", GIGABIT),
        ("eth1", 10 * GIGABIT),
        ("vlan7", GIGABIT),  # one connection goes over one link of the bond
        ("bridge", 10 * GIGABIT),
        ("veth", None),  # claims a speed, and has none
        ("down", None),
        ("virtio", None),
        ("no-such", None),
    ],
)
def test_the_slowest_physical_link_below_a_device(devices: Path, name: str, speed: int | None) -> None:
    assert link_speed(name, devices) == speed
