"""Servers and clients that nobody here wrote, with a migration in the middle: they notice nothing but a pause."""

from __future__ import annotations

import pytest

from phaul.lab.host import Host

from .boxes import Box, on_bridges
from .clients import Client
from .moves import migrate
from .stage import Stage
from .witness import wait_until

REDIS_PORT, HTTP_PORT, WEBSOCKET_PORT = 6379, 8080, 8765
SECONDS = 60.0
FILE_MIB = 96
FILE, DOWNLOADED = "/srv/shared/download", "/tmp/download"
RATE = "16M"  # of the download, a second: so that there is a middle
MESSAGES = 100
CLOSED_IN_PEACE = 1000  # RFC 6455, 7.4.1


@pytest.mark.parametrize("network", ["address", "veth"])
def test_redis_benchmark(stage: Stage, network: str) -> None:
    """Fifty connections with pipelines; it ends at once, with an error, when one of them breaks."""
    on_bridges(stage)
    box = Box(stage) if network == "veth" else None
    address = box.ip4 if box else stage.add_address(stage.ip4, device="br0")
    redis = ["redis-server", "--bind", address, "--port", str(REDIS_PORT), "--dir", "/tmp"]
    redis += ["--save", "", "--protected-mode", "no"]
    pid = box.spawn(*redis) if box else stage.spawn(redis)
    wait_until(lambda: pinged(stage.client, address), "Redis does not answer")
    load = ["-h", address, "-p", str(REDIS_PORT), "-c", "50", "-P", "4", "-d", "512"]
    benchmark = stage.client.popen(["redis-benchmark", *load, "-n", "400000", "-t", "set,get", "--csv"])
    wait_until(lambda: commands_done(stage.client, address) > 20_000, "the benchmark does not begin")
    move = migrate(stage.a, pid, stage.b.ip4, *([] if box else ["auto"]))
    assert move.report["connections"] >= 50
    assert benchmark.poll() is None, "it was over before the migration was"
    out, err = benchmark.communicate(timeout=SECONDS)
    assert benchmark.returncode == 0, (out, err)
    assert '"GET"' in out, (out, err)
    assert commands_done(stage.client, address) >= 800_000
    if box:
        box.close()


def test_a_long_download_by_curl(stage: Stage) -> None:
    """From Python's own HTTP server: every byte arrives once, over one connection."""
    on_bridges(stage)
    stage.a.exec(["sh", "-c", f"head -c {FILE_MIB << 20} /dev/urandom >{FILE}"])
    try:
        expected = stage.a.exec(["sha256sum", FILE]).stdout.split()[0]
        with Box(stage) as box:
            serve = ["python3", "-m", "http.server", str(HTTP_PORT), "--bind", box.ip4, "--directory", "/srv/shared"]
            pid = box.spawn(*serve)
            wait_until(lambda: connects(stage.client, box.ip4, HTTP_PORT), "the server does not answer")
            shown = ["--write-out", "%{http_code} %{num_connects} %{size_download}", "--output", DOWNLOADED]
            asked = ["--silent", "--show-error", "--limit-rate", RATE, *shown, f"http://{box.ip4}:{HTTP_PORT}/download"]
            client = stage.client.popen(["curl", *asked])
            here = stage.client.path(DOWNLOADED)
            wait_until(lambda: here.exists() and here.stat().st_size > FILE_MIB << 16, "the download does not begin")
            assert migrate(stage.a, pid, stage.b.ip4).report["connections"] >= 2
            assert client.poll() is None, "it was over before the migration was"
            out, err = client.communicate(timeout=SECONDS)
            assert (client.returncode, out) == (0, f"200 1 {FILE_MIB << 20}"), (out, err)
            assert stage.client.exec(["sha256sum", DOWNLOADED]).stdout.split()[0] == expected
    finally:
        stage.a.exec(["rm", "-f", FILE])
        stage.client.exec(["rm", "-f", DOWNLOADED])


def test_a_websocket(stage: Stage) -> None:
    """Messages of both ends, by the library `websockets`: none is lost or comes twice, and both close in peace."""
    on_bridges(stage)
    address = stage.add_address(stage.ip4, device="br0")
    pid = stage.spawn(["python3", "-m", "witness.websocket", "server", address, str(WEBSOCKET_PORT)])
    stage.wait_listening(stage.a, WEBSOCKET_PORT)
    with Client(stage.client, ["websocket", "client", address, str(WEBSOCKET_PORT)], "connected") as client:
        wait_messages(client, MESSAGES)
        assert migrate(stage.a, pid, stage.b.ip4, "auto").report["connections"] == 2
        wait_messages(client, client.ask("report")["push"] + MESSAGES)
        closed = client.ask("")
        assert closed["error"] == ""
        assert closed["code"] == CLOSED_IN_PEACE
    assert stage.b.running(pid)


def wait_messages(client: Client, count: int) -> None:
    """Wait until so many have come from the server, and as many answers have come since as at the time of asking."""

    def enough() -> bool:
        told = client.ask("report")
        assert told["error"] == "", told
        return bool(told["push"] >= count and told["answer"] >= count // 4)

    wait_until(enough, "the messages do not flow", SECONDS)


def pinged(client: Host, address: str) -> bool:
    return "PONG" in client.exec(["redis-cli", "-h", address, "ping"], check=False).stdout


def connects(client: Host, address: str, port: int) -> bool:
    probe = f"import socket; socket.create_connection(({address!r}, {port}), 2).close()"
    return client.exec(["python3", "-c", probe], check=False).returncode == 0


def commands_done(client: Host, address: str) -> int:
    lines = client.exec(["redis-cli", "-h", address, "info", "stats"]).stdout.splitlines()
    return int(next(line.partition(":")[2] for line in lines if line.startswith("total_commands_processed")))
