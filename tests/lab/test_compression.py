"""Compressed dumps and capped ones with real CRIU: whole, with their connections, and as quickly undone as any."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from .clients import Numbering
from .faults.link import Link
from .faults.runner import LOST
from .moves import Move, phaul
from .stage import Stage
from .test_migrate_failures import CANCELLED_STATUS, check_runs_again
from .witness import faults

PORT = 5000
MIB = 1 << 20
SIZE_MIB = 64
SLOW_LINK = "200mbit"
TRANSFER_STATUSES = (21, 22)
CAP_BYTES_PER_SECOND = 25_000_000


@pytest.fixture
def link(stage: Stage) -> Iterator[Link]:
    """The link between the hosts, healed afterwards."""
    between = Link(stage.lab)
    yield between
    between.heal()


def start(stage: Stage, *options: str, mib: int = SIZE_MIB) -> tuple[int, str]:
    """Start a server on the floating address, with memory; give its PID and the address."""
    address = stage.add_address(stage.ip4)
    return stage.start("server", "--listen", address, str(PORT), "--memory", str(mib), *options), address


def test_a_compressed_copy_is_whole_and_keeps_its_connections(stage: Stage) -> None:
    pid, address = start(stage, "--compressible")
    content = stage.ask(stage.a, "checksum")
    with Numbering(stage.client, *[(address, PORT)] * 3) as client:
        stage.wait_exchange(client)
        there = stage.move(pid, stage.a, stage.ip4, options=["--compress", "zstd"])
        assert stage.ask(stage.b, "checksum") == content
        stage.wait_exchange(client)
        back = stage.move(pid, stage.b, stage.ip4, options=["--compress", "none"])
        assert stage.ask(stage.a, "checksum") == content
        stage.wait_exchange(client)
        stage.check_downtime(there, stage.check_ticks(pid, stage.a, stage.b, stage.a))
        for account in client.finish():
            account.check(there.phase_at("freeze"), back.ended, finished=True)
    assert there.report["compressed"] is True
    assert there.report["memory_bytes"] > SIZE_MIB * MIB
    assert there.report["wire_bytes"] < there.report["memory_bytes"] / 2
    assert back.report["compressed"] is False
    assert back.report["wire_bytes"] > back.report["memory_bytes"]


def test_auto_compresses_what_gets_smaller_on_a_slow_link(stage: Stage, link: Link) -> None:
    link.slow(SLOW_LINK)
    pid, _ = start(stage, "--compressible")
    move = stage.move(pid, stage.a, stage.ip4, to=stage.b.ip4)
    assert move.report["compressed"] is True
    assert move.report["wire_bytes"] < SIZE_MIB * MIB / 2
    stage.check_ticks(pid, stage.a, stage.b)


def test_auto_leaves_alone_what_does_not(stage: Stage, link: Link) -> None:
    link.slow(SLOW_LINK)
    pid, _ = start(stage)
    move = stage.move(pid, stage.a, stage.ip4, to=stage.b.ip4)
    assert move.report["compressed"] is False
    stage.check_ticks(pid, stage.a, stage.b)


def test_a_link_that_is_cut_in_the_middle_of_a_compressed_dump(stage: Stage, link: Link) -> None:
    link.slow(SLOW_LINK)
    pid, address = start(stage, mib=4 * SIZE_MIB)
    content = stage.ask(stage.a, "checksum")
    with Numbering(stage.client, (address, PORT)) as client:
        stage.wait_exchange(client)
        with Move(stage.a, pid, stage.b.ip4, stage.ip4, options=["--compress", "zstd"]) as move:
            move.wait_progress(8 * MIB)
            began = time.monotonic()
            link.cut()
            move.wait()
        assert move.status in TRANSFER_STATUSES, move.told()
        assert move.error["where"] == "source"
        link.heal()
        stage.wait_exchange(client)
        stage.witness.wait_ticks(pid, 20, since=time.monotonic(), sender=stage.a.ip4)
        wrong = faults(stage.witness.ticks(pid), [stage.a.ip4])
        assert not [each for each in wrong if LOST not in each], wrong  # whoever heals the link loses a datagram
        assert stage.ask(stage.a, "checksum") == content
        (account,) = client.finish()
        account.check(began, move.ended, finished=True)
    assert not stage.b.running(pid)
    wait_gone(stage)


def test_cancelling_a_compressed_dump_is_prompt(stage: Stage, link: Link) -> None:
    link.slow(SLOW_LINK)
    pid, _ = start(stage, mib=4 * SIZE_MIB)
    with Move(stage.a, pid, stage.b.ip4, stage.ip4, options=["--compress", "zstd"]) as move:
        move.wait_progress(8 * MIB)
        assert phaul(stage.a, "cancel", move.id).returncode == 0
        answered = time.monotonic()
        move.wait()
    assert move.status == CANCELLED_STATUS, move.told()
    check_runs_again(stage, pid, answered)


@pytest.mark.parametrize("control", ["reno", "bbr"])
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_cap_holds_whatever_the_congestion_control(stage: Stage, control: str, compress: str) -> None:
    """The memory is random, so that as many bytes go over the wire either way."""
    asked = "net.ipv4.tcp_congestion_control"
    before = stage.a.exec(["sysctl", "-n", asked]).stdout.strip()
    stage.a.exec(["sysctl", "-w", f"{asked}={control}"])
    try:
        pid, _ = start(stage)
        move = stage.move(pid, stage.a, stage.ip4, options=["--bandwidth", "200M", "--compress", compress])
    finally:
        stage.a.exec(["sysctl", "-w", f"{asked}={before}"])
    (dump,) = (step for step in move.report["steps"] if step["name"] == "dump")
    assert dump["duration_us"] > 0.9e6 * SIZE_MIB * MIB / CAP_BYTES_PER_SECOND
    stage.check_ticks(pid, stage.a, stage.b)


def wait_gone(stage: Stage) -> None:
    """Wait until the destination has heard of the end: its lease has run out, and it has asked."""
    deadline = time.monotonic() + 60
    while stage.has_address(stage.b, stage.ip4):
        assert time.monotonic() < deadline, "the destination keeps what it was told to hold"
        time.sleep(0.2)
