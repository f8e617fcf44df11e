"""PostgreSQL with pgbench and psql as its clients, OpenSSH with ssh, and a migration in the middle.

They are in the image with more programs: `make examples` makes that, and runs this.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from phaul.lab import tools_image
from phaul.lab.cluster import Lab
from phaul.lab.host import Host

from .boxes import on_bridges
from .clients import Typing
from .conftest import unique_name
from .moves import Move, migrate
from .programs.not_root import USER
from .stage import WORKLOAD_LOG, Stage, may_use_resources
from .witness import wait_until

IMAGE = tools_image.find()
PORT = 5432
DATA = "/srv/shared/postgresql"
SOCKETS = "/run/postgresql"
ATTEMPTS = 3
CLIENTS, SCALE = 8, 5
SECONDS = 12  # of pgbench; the migration begins when a few thousand transactions are done
END_SECONDS = 60.0
SOON_SECONDS = 30.0
SETTINGS = ["dynamic_shared_memory_type=sysv", "shared_buffers=64MB", "autovacuum_naptime=1s"]

SSH_PORT = 2222
SSH_PLACE = "/srv/shared/ssh"
SSHD = f"""HostKey {SSH_PLACE}/host
AuthorizedKeysFile {SSH_PLACE}/user.pub
StrictModes no
UsePAM no
PidFile none
"""
KNOWN = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
SSH = ["-F", "none", "-p", str(SSH_PORT), "-i", f"{SSH_PLACE}/user", *KNOWN]
SSH_FILES = [SSH_PLACE, "/root/.ssh"]
SHELL = "bash --noprofile --norc --noediting -i"
COUNT = "i=0; while sleep 0.02; do i=$((i+1)); echo count $i; done &"
COUNTED = 40

# What pgbench's transactions leave: the same sum in four places, and a line for each.
SUMS = """SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
(SELECT sum(tbalance) FROM pgbench_tellers), sum(delta), count(*) FROM pgbench_history"""
IN_PARALLEL = """SET debug_parallel_query = on; SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0; SELECT count(*) FROM pgbench_accounts"""

pytestmark = pytest.mark.skipif(IMAGE is None, reason="the image with more programs is not made: `make examples`")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab whose hosts have these programs."""
    with Lab.up(unique_name("servers"), image_directory=IMAGE) as up:
        yield up


@dataclass(frozen=True, slots=True)
class Server:
    """A server on a, at an address that moves."""

    stage: Stage
    pid: int
    address: str
    programs: str

    def reached(self) -> list[str]:
        """Where clients find it."""
        return ["-h", self.address, "-p", str(PORT), "-U", "postgres"]

    def pgbench(self, *words: str) -> list[str]:
        return [f"{self.programs}/pgbench", *self.reached(), *words, "postgres"]

    def psql(self, *words: str) -> list[str]:
        return [f"{self.programs}/psql", *self.reached(), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *words]

    def ask(self, query: str) -> str:
        """Give the last line of an answer, over a connection of its own."""
        return self.stage.client.exec(self.psql("-c", query, "postgres")).stdout.split("\n")[-2]


@pytest.fixture
def server(stage: Stage) -> Iterator[Server]:
    """PostgreSQL with an IPC namespace of its own and its data on storage of both hosts."""
    on_bridges(stage)
    address = stage.add_address(stage.ip4, device="br0")
    programs = stage.a.exec(["sh", "-c", "echo /usr/lib/postgresql/*/bin"]).stdout.strip()
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    for host in (stage.a, stage.b):
        host.exec(["install", "-d", "-o", "postgres", "-g", "postgres", "-m", "2775", SOCKETS])
    stage.a.exec(["install", "-d", "-o", "postgres", "-g", "postgres", "-m", "700", DATA])
    pid = 0
    try:
        stage.a.exec([*as_user, f"{programs}/initdb", "--auth=trust", "-D", DATA])
        stage.a.exec(["sh", "-c", f"echo host all all 10.77.0.0/24 trust >>{DATA}/pg_hba.conf"])
        if not may_use_resources(stage.a):
            as_user = ["python3", "-m", "witness.not_root"]
            stage.a.exec(["chown", "-R", str(USER), DATA])
        settings = [word for each in SETTINGS for word in ("-c", each)]
        start = [f"{programs}/postgres", "-D", DATA, "-h", address, "-p", str(PORT), *settings]
        pid = stage.spawn(["unshare", "--ipc", *as_user, *start])
        made = Server(stage, pid, address, programs)
        ready = [f"{programs}/pg_isready", *made.reached()]
        wait_until(lambda: stage.client.exec(ready, check=False).returncode == 0, "it does not come up", SOON_SECONDS)
        stage.client.exec(made.pgbench("-i", "-q", "-s", str(SCALE)))
        yield made
    finally:
        for host in (stage.a, stage.b):
            if pid and host.running(pid):
                shut_down(host, pid)
        stage.a.exec(["rm", "-rf", DATA])


def moved(stage: Stage, pid: int) -> Move:
    """Migrate; again where CRIU's own code was in a page as it went by, which phaul finds before it is of any harm.

    CRIU sends pages without copying them, and writes a system call into one of each process before they have left (4.2,
    compel/src/lib/infect.c: compel_execute_syscall). Seen in one of some forty moves of two dozen processes.
    """
    for _ in range(ATTEMPTS):
        move = migrate(stage.a, pid, stage.b.ip4, "auto")
        if move.status == 0:
            break
        assert (move.error["code"], move.error["where"]) == ("TransferError", "source"), move.told()
        assert stage.a.running(pid)
    return move


def shut_down(host: Host, pid: int) -> None:
    """End it as its operators do, "fast"."""
    host.kill(pid, signal.SIGINT)
    wait_until(lambda: not host.running(pid), "it does not shut down", SOON_SECONDS)


def test_pgbench(stage: Stage, server: Server) -> None:
    """Not one transaction fails, and what they have left is what they were told was done."""
    load = server.pgbench("-n", "-c", str(CLIENTS), "-j", "2", "-T", str(SECONDS), "--failures-detailed")
    bench = stage.client.popen(load)
    wait_until(lambda: int(server.ask("SELECT count(*) FROM pgbench_history")) > 500, "it does not begin", SOON_SECONDS)
    assert moved(stage, server.pid).report["connections"] > CLIENTS
    assert bench.poll() is None, "it was over before the migration was"
    out, err = bench.communicate(timeout=END_SECONDS)
    assert bench.returncode == 0, (out, err)
    assert "number of failed transactions: 0 " in out, (out, err)
    done = re.search(r"transactions actually processed: (\d+)", out)
    assert done, out
    *sums, count = server.ask(SUMS).split("|")
    assert len(set(sums)) == 1, sums
    assert count == done[1]
    assert server.ask(IN_PARALLEL) == str(SCALE * 100_000)  # in segments of shared memory made on b
    shut_down(stage.b, server.pid)
    assert "database system is shut down" in stage.b.path(WORKLOAD_LOG).read_text()


def test_a_session_of_psql(stage: Stage, server: Server) -> None:
    """What belongs to a session alone is there after the move: a table, a statement, a transaction, a lock."""
    with Typing(stage.client, server.psql("postgres"), r"\echo end-{}") as session:
        session.answer("CREATE TEMP TABLE mine AS SELECT generate_series(1, 1000) AS n;")
        session.answer("PREPARE sum_to(int) AS SELECT sum(n) FROM mine WHERE n <= $1;")
        session.answer("SET application_name = 'stays';")
        session.answer("SELECT pg_advisory_lock(4711);")
        session.answer("BEGIN; UPDATE pgbench_branches SET bbalance = 42 WHERE bid = 1;")
        (backend,) = session.answer("SELECT pg_backend_pid();")
        assert moved(stage, server.pid).report["connections"] > 1
        assert session.answer("EXECUTE sum_to(100);") == ["5050"]
        assert session.answer("SELECT pg_backend_pid();") == [backend]
        assert session.answer("SHOW application_name;") == ["stays"]
        assert server.ask("SELECT pg_try_advisory_lock(4711)") == "f"
        assert server.ask("SELECT bbalance FROM pgbench_branches WHERE bid = 1") == "0"
        session.answer("COMMIT;")
        assert server.ask("SELECT bbalance FROM pgbench_branches WHERE bid = 1") == "42"
        session.type("SELECT count(*) FROM mine;")
        session.type(r"\q")
        assert session.end() == 0


def test_an_ssh_session(stage: Stage) -> None:
    """OpenSSH with a terminal; the shell in it counts in the background, and is typed to before and after."""
    on_bridges(stage)
    address = stage.add_address(stage.ip4, device="br0")
    try:
        pid = start_sshd(stage, address)
        with Typing(stage.client, ["ssh", "-tt", *SSH, f"root@{address}", SHELL], "echo end-$(({}))") as shell:
            shell.type("stty -echo; PS1=")
            shell.answer(COUNT)
            terminal = shell.answer("tty; stty size; echo $$")
            shell.wait_count(COUNTED)
            assert moved(stage, pid).report["connections"] >= 2
            shell.wait_count(shell.count + COUNTED)
            assert shell.answer("tty; stty size; echo $$") == terminal
            assert shell.answer("hostname") == [stage.b.name]
            shell.type("kill %1; wait; exit 7")
            assert shell.end() == 7
            # Who comes now is served as well.
            asked = ["ssh", *SSH, f"root@{address}", "hostname"]
            assert stage.client.exec(asked).stdout.strip() == stage.b.name
    finally:
        stage.clear_workloads()
        for host in (stage.a, stage.b, stage.client):
            host.exec(["rm", "-rf", *SSH_FILES], check=False)


def start_sshd(stage: Stage, address: str) -> int:
    """A server of its own, with a key and a port of its own; give its PID."""
    stage.a.exec(["mkdir", "-p", SSH_PLACE])
    for name in ("host", "user"):
        stage.a.exec(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{SSH_PLACE}/{name}"])
    settings = f"Port {SSH_PORT}\nListenAddress {address}\n{SSHD}"
    stage.a.path(f"{SSH_PLACE}/config").write_text(settings)
    for host in (stage.a, stage.b):
        host.exec(["mkdir", "-p", "/run/sshd"])
    pid = stage.spawn(["/usr/sbin/sshd", "-D", "-e", "-f", f"{SSH_PLACE}/config"])
    stage.wait_listening(stage.a, SSH_PORT)
    return pid
