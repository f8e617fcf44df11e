"""The action scripts of docs/hooks beside the programs that they are for: HAProxy, keepalived, BIND.

They are in an image of their own: `make examples` makes it. Of systemd there is only a stand-in here.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from phaul.lab import tools_image
from phaul.lab.cluster import Lab
from phaul.lab.host import Host
from phaul.migration.hooks import Stage

from .conftest import unique_name
from .hooking import DIRECTORY, put
from .moves import migrate, phaul
from .stage import Stage as LabStage
from .witness import wait_until

EXAMPLES = Path(__file__).parents[2] / "docs/hooks"
IMAGE = tools_image.find()
PORT = 8000
SOON_SECONDS = 30.0
VIP = "10.77.0.90"

pytestmark = pytest.mark.skipif(IMAGE is None, reason="the image with more programs is not made: `make examples`")

HAPROXY = """
global
    stats socket ipv4@0.0.0.0:9999 level admin
defaults
    mode tcp
    timeout connect 2s
    timeout client 10s
    timeout server 10s
frontend all
    bind :80
    default_backend app
backend app
    server a 10.77.0.11:8000
    server b 10.77.0.12:8000 disabled
"""
KEEPALIVED = """
global_defs {{
    router_id {name}
    vrrp_garp_master_delay 0
}}
track_file phaul {{
    file /run/keepalived-phaul
}}
vrrp_instance app {{
    interface eth0
    virtual_router_id 77
    priority 100
    advert_int 0.2
    version 3
    virtual_ipaddress {{
        10.77.0.90/24
    }}
    track_file {{
        phaul weight 1
    }}
}}
"""
NAMED = """
include "/etc/phaul.key";
options { directory "/var/cache/bind"; listen-on port 53 { any; }; pid-file none; dnssec-validation no; recursion no; };
zone "example.com" { type primary; file "example.com"; allow-update { key phaul; }; };
"""
ZONE = """$TTL 30
@ SOA ns hostmaster 1 60 60 600 30
  NS ns
ns A 10.77.0.20
app A 10.77.0.11
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab whose hosts have these programs."""
    with Lab.up(unique_name("examples"), image_directory=IMAGE) as up:
        yield up


@pytest.fixture(autouse=True)
def tidy(stage: LabStage) -> Iterator[None]:
    """No hook and no server is left to the next test."""
    yield
    for host in stage.lab.members:
        shutil.rmtree(host.path(DIRECTORY), ignore_errors=True)
        end_servers(host)
        wait_until(lambda host=host: not _servers(host), "the servers do not end", SOON_SECONDS)  # type: ignore[misc]


def end_servers(host: Host) -> None:
    for pid in _servers(host).split():
        host.kill(int(pid), signal.SIGTERM)


def _servers(host: Host) -> str:
    return host.exec(["pgrep", "-x", "haproxy|keepalived|named"], check=False).stdout


def install(stage: LabStage, example: str) -> None:
    """Put an example where it is run at every stage of both hosts."""
    for host in (stage.a, stage.b):
        for each in Stage:
            put(host, each, example, (EXAMPLES / example).read_text())


def server(stage: LabStage) -> int:
    """A server on a that says on which host it is."""
    pid = stage.spawn(["python3", "-m", "http.server", str(PORT), "--directory", "/etc"])
    for host in (stage.a, stage.b):
        host.path("/etc/where").write_text(f"{host.name}....")  # a file of one size on both
    stage.wait_listening(stage.a, PORT)
    return pid


def ask(stage: LabStage, address: str) -> str:
    """Who answers a new client."""
    code = f"import urllib.request as r; print(r.urlopen('http://{address}/where', timeout=3).read().decode()[0])"
    return stage.client.exec(["python3", "-c", code], check=False).stdout.strip()


def fail_at(stage: LabStage, at: Stage) -> str:
    return put(stage.b, at, "zz-fail", "#!/bin/sh\nexit 1\n")


def told(events: list[dict[str, object]], example: str) -> list[str]:
    """What an example has said, in order."""
    ran = (each for each in events if each["event"] == "hook_ran" and str(each["path"]).endswith(example))
    return [str(each["output"]) for each in ran if each["output"]]


def test_haproxy_sends_new_connections_to_where_it_runs(stage: LabStage) -> None:
    install(stage, "haproxy-backend")
    for host in (stage.a, stage.b):
        settings = f"HAPROXY_HOST={stage.client.ip4}\nHAPROXY_PORT=9999\nHAPROXY_BACKEND=app\n"
        host.path("/etc/default/phaul-haproxy").write_text(settings)
    stage.client.path("/etc/haproxy/haproxy.cfg").write_text(HAPROXY)
    stage.client.exec(["haproxy", "-D", "-f", "/etc/haproxy/haproxy.cfg"])
    pid = server(stage)
    assert ask(stage, "127.0.0.1") == "a"
    failing = fail_at(stage, Stage.POST_RESTORE)
    assert migrate(stage.a, pid, "b").error["code"] == "HookError"
    assert ask(stage, "127.0.0.1") == "a"
    stage.b.path(failing).unlink()
    move = stage.move(pid, stage.a)
    assert ask(stage, "127.0.0.1") == "b"
    assert "set server app/a state drain" in told(move.events, "haproxy-backend")
    stage.move(pid, stage.b)
    assert ask(stage, "127.0.0.1") == "a"


def test_keepalived_hands_its_address_over(stage: LabStage) -> None:
    install(stage, "keepalived-handover")
    for host, bonus in ((stage.a, 100), (stage.b, 0)):
        host.path("/run/keepalived-phaul").write_text(f"{bonus}\n")
        host.path("/etc/keepalived/keepalived.conf").write_text(KEEPALIVED.format(name=host.name))
        host.exec(["keepalived", "--vrrp", "-p", "/run/k.pid", "-r", "/run/v.pid"])
    wait_until(lambda: stage.has_address(stage.a, VIP), "keepalived does not put its address on", SOON_SECONDS)
    pid = server(stage)
    stage.move(pid, stage.a)
    wait_until(lambda: stage.has_address(stage.b, VIP), "keepalived does not hand its address over", SOON_SECONDS)
    wait_until(lambda: not stage.has_address(stage.a, VIP), "both have the address", SOON_SECONDS)
    assert ask(stage, f"{VIP}:{PORT}") == "b"
    fail_at(stage, Stage.PREFLIGHT)
    failing = put(stage.a, Stage.POST_RESTORE, "zz-fail", "#!/bin/sh\nexit 1\n")
    assert migrate(stage.b, pid, "a").status in (10, 27)
    assert stage.has_address(stage.b, VIP)
    stage.a.path(failing).unlink()
    for host in (stage.a, stage.b):
        end_servers(host)
        wait_until(lambda host=host: not stage.has_address(host, VIP), "it keeps its address", SOON_SECONDS)  # type: ignore[misc]


def test_the_name_leads_to_where_it_runs(stage: LabStage) -> None:
    install(stage, "dns-update")
    key = stage.client.exec(["tsig-keygen", "phaul"]).stdout
    stage.client.path("/etc/phaul.key").write_text(key)
    stage.client.path("/etc/named.phaul").write_text(NAMED)
    stage.client.path("/var/cache/bind/example.com").write_text(ZONE)
    for host in (stage.a, stage.b):
        settings = {"SERVER": stage.client.ip4, "ZONE": "example.com", "NAME": "app.example.com", "ADDRESS": host.ip4}
        settings |= {"TTL": "30", "KEY": "/etc/phaul.key"}
        host.path("/etc/default/phaul-dns").write_text("".join(f"DNS_{k}={v}\n" for k, v in settings.items()))
        host.path("/etc/phaul.key").write_text(key)
    stage.client.exec(["named", "-c", "/etc/named.phaul"])

    def resolved() -> str:
        asked = ["dig", "+short", "+tries=1", "@127.0.0.1", "app.example.com"]
        return stage.client.exec(asked, check=False).stdout.strip()

    wait_until(lambda: resolved() == stage.a.ip4, "the name server does not answer", SOON_SECONDS)
    pid = server(stage)
    move = stage.move(pid, stage.a)
    assert resolved() == stage.b.ip4
    assert told(move.events, "dns-update") == [f"app.example.com is {stage.b.ip4}"]


def test_a_unit_follows_as_far_as_can_be_seen_without_systemd(stage: LabStage) -> None:
    """The script asks for the right units, and what the unit would start lasts as long as the workload does."""
    install(stage, "follow-unit")
    for host in (stage.a, stage.b):
        stand_in = host.path("/usr/local/bin/systemctl")
        stand_in.write_text('#!/bin/sh\necho "$@" >>/run/systemctl.log\n')
        stand_in.chmod(0o755)
    pid = server(stage)
    stage.move(pid, stage.a)
    unit = "phaul-workload@python3.service"
    wait_until(lambda: stage.a.path("/run/systemctl.log").exists(), "nothing is stopped", SOON_SECONDS)
    assert stage.a.path("/run/systemctl.log").read_text() == f"stop --no-block {unit}\n"
    assert stage.b.path("/run/systemctl.log").read_text() == f"start --no-block {unit}\n"
    assert stage.b.path("/run/phaul-workload/python3").read_text() == f"PID={pid}\n"
    (start,) = [
        line for line in (EXAMPLES / "phaul-workload@.service").read_text().splitlines() if "ExecStart=" in line
    ]
    follower = stage.b.spawn(["sh", "-c", f"exec {start.partition('=')[2].replace('${PID}', str(pid))}"])
    assert stage.b.running(follower)
    stage.b.kill(pid)
    stage.b.wait_ended(follower, SOON_SECONDS)
    assert phaul(stage.b, "status").returncode == 0
