"""Trust on real CRIU: what is seen on the wire, by a capture between the hosts, and a host that is trusted no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from phaul.lab.trust import DIRECTORY

from .capture import Capture
from .moves import Move, migrate
from .stage import Stage
from .witness import wait_until

MEMORY_MARK = b"=a-page-that-nobody-may-see="
NAME_MARK = b"a-name-that-stands-in-an-image"
MIB = 1 << 20
MEMORY_MIB = 8
NOT_TRUSTED_STATUS = 12

# The marks are handed over as hex: no command line of this test holds them.
HOLDER = """
import os, sys, time
mark, name, mib = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2]).decode(), int(sys.argv[3])
memory = bytearray(mark * (mib * 1048576 // len(mark)))
kept = open("/srv/shared/" + name, "w")
kept.write("x"); kept.flush()
while True: time.sleep(0.05)
"""


@pytest.fixture
def restarted(stage: Stage) -> Iterator[Stage]:
    """Agents may be started with other options; afterwards they run as before."""
    yield stage
    agents(stage, [])


def agents(stage: Stage, options: Sequence[str]) -> None:
    for host in (stage.a, stage.b):
        host.stop_agent()
        host.start_agent(options)


def seen_of_a_migration(stage: Stage, *options: str) -> tuple[int, int, int]:
    pid = stage.spawn(["python3", "-c", HOLDER, MEMORY_MARK.hex(), NAME_MARK.hex(), str(MEMORY_MIB)])
    kept = stage.a.path("/srv/shared/" + NAME_MARK.decode())
    wait_until(lambda: kept.exists() and kept.stat().st_size > 0, "the workload does not start")
    capture = Capture(stage.b, MEMORY_MARK, NAME_MARK)
    stage.move(pid, stage.a, options=options)
    kept.unlink()
    seen, (memory, name) = capture.stop()
    return seen, memory, name


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_neither_memory_nor_images_are_in_the_clear(stage: Stage, compress: str) -> None:
    seen, memory, name = seen_of_a_migration(stage, "--compress", compress)
    assert seen > (MEMORY_MIB * MIB if compress == "none" else 0)
    assert (memory, name) == (0, 0)


def test_the_capture_sees_what_is_in_the_clear(restarted: Stage) -> None:
    """Or the test above could not fail: without certificates both marks cross the wire, without encryption memory's."""
    agents(restarted, ["--insecure"])
    _, memory, name = seen_of_a_migration(restarted, "--compress", "none")
    assert memory > 0
    assert name > 0
    agents(restarted, ["--page-encryption", "off"])
    _, memory, _ = seen_of_a_migration(restarted, "--compress", "none")
    assert memory > 0
    for host in (restarted.a, restarted.b):
        assert "agent.page_encryption_off" in host.agent_log()
    assert "page_channel.in_the_clear" in restarted.a.agent_log()


def test_one_side_alone_cannot_turn_encryption_off(restarted: Stage) -> None:
    pid = restarted.start("ticker")
    restarted.b.stop_agent()
    restarted.b.start_agent(["--page-encryption", "off"])
    move = migrate(restarted.a, pid, "b")
    assert "does not encrypt memory (--page-encryption off)" in move.error["message"]
    restarted.check_undisturbed(pid, move.began)


def test_revoked_rotated_and_trusted_again(restarted: Stage) -> None:
    """From a person's commands to a refusal in each direction, and back."""
    stage = restarted
    pid = stage.start("ticker")
    stage.a.exec(["phaul", "trust", "revoke", "b"])
    # From a, which knows: refused by a. From b, which does not: refused by a, too.
    error = stage.refused(pid, code="NotTrustedError")
    assert "is not trusted: its certificate was revoked" in error["message"]
    there = stage.start("ticker", host=stage.b)
    with Move(stage.b, there, "a") as move:
        move.wait()
    assert move.status == NOT_TRUSTED_STATUS, move.told()
    assert "does not trust this host: this host's certificate was revoked" in move.error["message"]
    assert "its certificate was revoked" in stage.a.agent_log()
    # Trusted again, by a certificate of a new root; no agent is restarted.
    stage.a.exec(["phaul", "trust", "rotate"])
    stage.a.exec(
        ["phaul", "trust", "issue", "b", "--also", stage.b.ip4, "--also", stage.b.ip6, "--out", "/root/b.trust"]
    )
    for name in ("host.pem", "list.json"):
        text = stage.a.path(f"/root/b.trust/{name}").read_text()
        target: Path = stage.b.path(f"{DIRECTORY}/{name}")
        target.with_suffix(".copy").write_text(text)
        target.with_suffix(".copy").rename(target)
    stage.a.exec(["rm", "-r", "/root/b.trust"])
    assert migrate(stage.a, pid, "b").status == 0
    stage.a.exec(["phaul", "trust", "rotate", "--finish"])
    shown = json.loads(stage.b.exec(["phaul", "trust", "show", "--json"]).stdout)
    assert len(shown["roots"]) == 1
    assert shown["of_newest_root"]
    assert migrate(stage.b, pid, "a").status == 0
