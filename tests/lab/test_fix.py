"""`phaul doctor --fix` on a real host: orphaned fences, images and locks of CRIU go, what others have stays."""

from __future__ import annotations

import json
from typing import Any

from phaul.lab.host import Host

from .clients import Numbering
from .moves import phaul
from .stage import Stage

PORT = 7801
STRANGER = "0badcafe"
FENCE = f"""table inet phaul-{STRANGER} {{
  chain input {{
    type filter hook input priority -400
  }}
}}
"""
# As CRIU 4.2 writes them (criu/netfilter.c): a set of the connections' four parts.
LOCK = """table inet CRIU-{name} {{
  set conns4 {{
    type ipv4_addr . inet_service . ipv4_addr . inet_service
    elements = {{ {flow} }}
  }}
}}
"""
FOREIGN = "192.0.2.1 . 1000 . 192.0.2.2 . 2000"


def fix(host: Host, *options: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(phaul(host, "doctor", "--fix", "--json", *options).stdout)
    return told


def nft(host: Host, rules: str) -> None:
    host.exec(["nft", "-f", "-"], input=rules)


def tables(host: Host) -> list[str]:
    return sorted(host.exec(["nft", "list", "tables"]).stdout.split("\n"))


def mount(host: Host, path: str) -> None:
    """Mount a tmpfs where only the host's agent and its like see it."""
    agent = str(host.agent_pid)
    host.exec(["nsenter", "-t", agent, "-m", "sh", "-c", f"mkdir -p {path} && mount -t tmpfs none {path}"])


def test_orphans_are_shown_and_removed_and_nothing_else(stage: Stage) -> None:
    before = {host: tables(host) for host in (stage.a, stage.b)}
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT))
    with Numbering(stage.client, (address, PORT)) as client:
        stage.wait_exchange(client)
        local, remote = stage.a.exec(["ss", "-Htn", f"sport = :{PORT}"]).stdout.split()[3:5]
        flow = f"{local} . {remote}".replace(":", " . ")
        stage.move(pid, stage.a, stage.ip4)  # a journal of this host names its connection
        stage.wait_exchange(client)
        for host in (stage.a, stage.b):
            nft(host, FENCE)
            nft(host, LOCK.format(name="foreign", flow=FOREIGN))
            mount(host, f"/run/phaul/images/{STRANGER}")
        nft(stage.a, LOCK.format(name="ours", flow=flow))
        try:
            for host, kinds in ((stage.a, ["engine_lock", "fence", "images"]), (stage.b, ["fence", "images"])):
                told = fix(host)
                assert sorted(each["kind"] for each in told["found"]) == kinds, told
                assert told["removed"] == []
                assert f"table inet phaul-{STRANGER}" in tables(host)
                told = fix(host, "--yes")
                assert [each["problem"] for each in told["removed"]] == [""] * len(kinds)
                assert tables(host) == sorted([*before[host], "table inet CRIU-foreign"])
                assert fix(host)["found"] == []
        finally:
            for host in (stage.a, stage.b):
                nft(host, "delete table inet CRIU-foreign\n")
        stage.wait_exchange(client)
        stage.check_ticks(pid, stage.a, stage.b)
