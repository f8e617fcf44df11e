"""Servers and clients that nobody here wrote, with a migration in the middle: they notice nothing but a pause."""

from __future__ import annotations

import pytest

from phaul.lab.host import Host

from .boxes import Box, on_bridges
from .moves import migrate
from .stage import Stage
from .witness import wait_until

REDIS_PORT, HTTP_PORT = 6379, 8080
SECONDS = 60.0
FILE_MIB = 96
FILE = "/srv/shared/download"
RATE_BYTES = 16 << 20  # of the download, a second: so that there is a middle

# Reads as slowly as it is told; the length and the sum are known to who asks.
DOWNLOAD = """
import hashlib, sys, time, urllib.request
url, rate = sys.argv[1], int(sys.argv[2])
digest, count, began = hashlib.sha256(), 0, time.monotonic()
with urllib.request.urlopen(url, timeout=30) as answer:
    while part := answer.read(1 << 16):
        if not count:
            print("begun", flush=True)
        digest.update(part)
        count += len(part)
        time.sleep(max(0.0, began + count / rate - time.monotonic()))
print(count, digest.hexdigest())
"""


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


def test_a_long_download(stage: Stage) -> None:
    """Python's own HTTP server and client: every byte arrives once."""
    on_bridges(stage)
    stage.a.exec(["sh", "-c", f"head -c {FILE_MIB << 20} /dev/urandom >{FILE}"])
    try:
        expected = stage.a.exec(["sha256sum", FILE]).stdout.split()[0]
        with Box(stage) as box:
            serve = ["python3", "-m", "http.server", str(HTTP_PORT), "--bind", box.ip4, "--directory", "/srv/shared"]
            pid = box.spawn(*serve)
            url = f"http://{box.ip4}:{HTTP_PORT}/download"
            asked = ["python3", "-c", DOWNLOAD, url, str(RATE_BYTES)]
            wait_until(lambda: reached(stage.client, box.ip4), "the server does not answer")
            client = stage.client.popen(asked)
            assert client.stdout is not None
            assert client.stdout.readline() == "begun\n"
            assert migrate(stage.a, pid, stage.b.ip4).report["connections"] >= 2
            assert client.poll() is None, "it was over before the migration was"
            out, err = client.communicate(timeout=SECONDS)
            assert out.split() == [str(FILE_MIB << 20), expected], (out, err)
    finally:
        stage.a.exec(["rm", "-f", FILE])


def pinged(client: Host, address: str) -> bool:
    return "PONG" in client.exec(["redis-cli", "-h", address, "ping"], check=False).stdout


def reached(client: Host, address: str) -> bool:
    probe = f"import socket; socket.create_connection(({address!r}, {HTTP_PORT}), 2).close()"
    return client.exec(["python3", "-c", probe], check=False).returncode == 0


def commands_done(client: Host, address: str) -> int:
    lines = client.exec(["redis-cli", "-h", address, "info", "stats"]).stdout.splitlines()
    return int(next(line.partition(":")[2] for line in lines if line.startswith("total_commands_processed")))
