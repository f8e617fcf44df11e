"""`--new-address`: a server is bound to another address on the destination, and its clients are told at once."""

from __future__ import annotations

from .clients import Numbering
from .hooking import noted, put
from .moves import migrate
from .stage import Stage
from .witness import faults

PORT = 7803


def errors(client: Numbering) -> list[str]:
    return [account.error for account in client.report()]


def test_a_server_gets_a_new_address_and_its_clients_are_told(stage: Stage) -> None:
    pid = stage.start("server", "--listen", stage.a.ip4, str(PORT))
    change = ["--new-address", f"{stage.a.ip4}={stage.b.ip4}"]
    with Numbering(stage.client, (stage.a.ip4, PORT)) as client, noted((stage.a, stage.b), ()):
        stage.wait_exchange(client)
        failing = put(stage.b, "post-restore", "fail", "#!/bin/sh\nexit 1\n")
        move = migrate(stage.a, pid, "b", options=change)
        assert move.error["code"] == "HookError", move.told()
        stage.wait_exchange(client)  # a rollback keeps what would have been closed
        stage.b.path(failing).unlink()
        move = stage.move(pid, stage.a, options=change)
        warnings = [each["message"] for each in move.events if each["event"] == "warning"]
        assert any("1 TCP connection will be closed" in each for each in warnings), warnings
        assert errors(client)[0] in ("EOF", "ECONNRESET", "EPIPE"), errors(client)
    stage.wait_listening(stage.b, PORT)
    with Numbering(stage.client, (stage.b.ip4, PORT)) as client:
        stage.wait_exchange(client)
        assert errors(client) == [""]
        # No tick is lost or doubled; the server hears of the end as it comes to it, as an end of file or as an error.
        stage.witness.wait_ticks(pid, 40, since=move.ended, sender=stage.b.ip4)
        found = faults(stage.witness.ticks(pid), [stage.a.ip4, stage.b.ip4])
        assert found in ([], ["stream 0: found 1 errors itself"])


def test_what_cannot_be_had_is_refused(stage: Stage) -> None:
    pid = stage.start("server", "--listen", stage.a.ip4, str(PORT))
    for pair, why in (
        (f"{stage.a.ip4}=10.77.0.99", "b does not have the address 10.77.0.99"),
        (f"10.77.0.98={stage.b.ip4}", "No socket of the workload is bound to 10.77.0.98"),
    ):
        move = migrate(stage.a, pid, "b", options=["--new-address", pair])
        assert move.error["code"] == "PreflightError", move.told()
        assert why in move.error["detail"]
    stage.check_undisturbed(pid, since=0)
