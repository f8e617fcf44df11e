"""Connections that are in no image: not accepted yet, or half made. Their clients are told, and wait no longer."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from phaul.lab.host import Host

from .boxes import BRIDGE, Box, on_bridges
from .clients import Numbering
from .hooking import put
from .moves import migrate
from .stage import Stage

PORT = 5000
ACCEPT_FILE = "/run/accept"
TOLD_SECONDS = 25.0  # for a client that waits to hear that its connection is over; the migration included


@pytest.fixture
def stage(stage: Stage) -> Stage:
    """The lab for one test, its hosts' devices on bridges."""
    on_bridges(stage)
    return stage


@pytest.mark.parametrize("network", ["addresses", "veth"])
def test_connections_that_nobody_has_accepted_can_be_dropped(stage: Stage, network: str) -> None:
    """Their clients are told as soon as the copy runs, also those that only wait; who was accepted notices nothing."""
    with ExitStack() as stack:
        waiting = ["--accept-when", ACCEPT_FILE]
        moving: tuple[str, ...] = ()
        if network == "veth":
            box = stack.enter_context(Box(stage))
            addresses = (box.ip4, box.ip6)
            pid = box.serve(PORT, *waiting)
        else:
            addresses = (stage.add_address(stage.ip4, device=BRIDGE), stage.add_address(stage.ip6, device=BRIDGE))
            moving = (stage.ip4, stage.ip6)
            pid = stage.start("server", "--listen", "::", str(PORT), "--dual-stack", *waiting)
        stack.callback(stage.b.path(ACCEPT_FILE).unlink, missing_ok=True)
        silent = stack.enter_context(Silent(stage.client, [(address, PORT) for address in addresses]))
        error = stage.refused(pid, *moving, to=stage.b.ip4)
        assert "wait to be accepted" in error["message"]
        move = migrate(stage.a, pid, stage.b.ip4, *moving, options=["--drop-unaccepted"])
        assert any("wait" in warning for warning in move.report["warnings"])
        assert silent.ends() == ["ECONNRESET"] * len(addresses)
        stage.b.path(ACCEPT_FILE).touch()
        with Numbering(stage.client, *((address, PORT) for address in addresses)) as client:
            stage.wait_exchange(client)
            for account in client.finish():
                assert (account.error, account.acknowledged) == ("", account.sent)


def test_a_client_whose_last_packet_fell_into_the_fence(stage: Stage) -> None:
    """It takes itself for connected and waits for a greeting; the server has never heard of it.

    Behind the fence the source's kernel forgets such a connection when it would send its SYN-ACK again, after 1 s.
    """
    address = stage.add_address(stage.ip4, device=BRIDGE)
    pid = stage.start("server", "--listen", address, str(PORT))
    rule = f"add rule inet half input ip daddr {address} tcp dport {PORT} tcp flags & (syn | ack) == ack drop"
    table = "add table inet half; add chain inet half input { type filter hook input priority 0; }"
    stage.a.exec(["nft", f"{table}; {rule}"])
    slow = put(stage.a, "post-dump", "slow", "#!/bin/sh\nsleep 2\n")
    try:
        with Silent(stage.client, [(address, PORT)]) as silent:
            stage.move(pid, stage.a, stage.ip4)
            assert silent.ends() == ["ECONNRESET"]
    finally:
        stage.a.path(slow).unlink()
        stage.a.exec(["nft", "delete table inet half"])
    stage.check_ticks(pid, stage.a, stage.b)


class Silent:
    """Clients that connect, say nothing and wait. Owns their process until the end of the `with`."""

    def __init__(self, client: Host, places: list[tuple[str, int]]) -> None:
        where = [word for address, port in places for word in (address, str(port))]
        self._process = client.popen(["python3", "-c", SILENT, *where])
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "connected\n"

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ends(self) -> list[str]:
        """Say how each connection ended, in their order; one that does not within TOLD_SECONDS is "TimeoutError"."""
        out, _ = self._process.communicate(timeout=60)
        return out.split()


SILENT = f"""
import errno, socket, sys
words = sys.argv[1:]
peers = [socket.create_connection((address, int(port))) for address, port in zip(words[::2], words[1::2])]
print("connected", flush=True)
for peer in peers:
    peer.settimeout({TOLD_SECONDS})
    try:
        print("EOF" if not peer.recv(1) else "data", flush=True)
    except TimeoutError:
        print("TimeoutError", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""
