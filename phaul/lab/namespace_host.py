"""A host of a lab that is a set of namespaces on this machine.

Made by `phaul.lab.cluster`; `phaul.lab.host` says what can be done with it. It is entered with nsenter. Never touches
another host, or the machine's own namespaces.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from phaul.errors import LabError
from phaul.lab import cgroups, commands, recipe, records
from phaul.lab.host import (
    AGENT_DEADLINE_SECONDS,
    AGENT_LOG,
    AGENT_SOCKET,
    HOST_PATH,
    POLL_SECONDS,
    SHARED_NAME,
    SPAWN,
    TERMINAL_VARIABLES,
    Host,
    environment,
    recorded,
)
from phaul.lab.records import HostDescription, ProcessRecord

AGENT_COMMAND = ("phaul", "agent", "--listen", "[::]:7428")

# Enter the groups of the host first: inside, they are out of sight.
_JOIN = 'while [ "$1" != -- ]; do echo 0 >"$1"; shift; done; shift; '
_ENTER = _JOIN + 'exec "$@"'
# A terminal's Ctrl-C reaches nsenter and the command; nsenter has to stay and hand on how the command ended.
_ENTER_INTERACTIVELY = 'trap "" INT QUIT; ' + _ENTER
_NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")


class NamespaceHost(Host):
    """A host in namespaces. The recorded process is the parent of its PID 1."""

    def __init__(self, description: HostDescription, directory: Path) -> None:
        super().__init__(description, directory)
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The PID of the host's PID 1 as the machine sees it."""
        if self._pid is None or not self.alive:
            holder = self.holder
            self._pid = records.child_of(holder.pid) if holder and holder.alive else None
            if self._pid is None:
                raise LabError(f"Host {self.name} is not up.", hint="`phaul lab status` tells; `phaul lab up` starts.")
        return self._pid

    @property
    def root(self) -> Path:
        """The host's file system as the machine can open it."""
        return Path(f"/proc/{self.pid}/root")

    def path(self, path: str) -> Path:
        """A file of the host, given as the host sees it, as the machine can open it."""
        return self.root / path.lstrip("/")

    def launch(self, image: Path, hosts_file: str, group: Path | None) -> subprocess.Popen[bytes]:
        """Start the host's first process; it is up once `commands.wait_ready` has returned for it."""
        directory = self._directory / self.name
        directory.mkdir()
        variables = {
            "PATH": HOST_PATH,
            "LAB_DIRECTORY": str(directory),
            "LAB_IMAGE": str(image),
            "LAB_SOURCE": str(recipe.source_directory()),
            "LAB_SHARED": str(self._directory / SHARED_NAME),
            "LAB_HOSTNAME": self.name,
            "LAB_HOSTS": hosts_file,
            "LAB_MACHINE_ID": hashlib.md5(self.mac.encode(), usedforsecurity=False).hexdigest(),
            "LAB_FIRST_PID": str(self.description.first_pid),
            "LAB_CGROUP": "yes" if group else "",
        }
        unshare = [commands.find("unshare"), *_NAMESPACES, "--fork", "--kill-child", "--propagation", "private"]
        boot = ["/bin/sh", str(Path(__file__).with_name("boot.sh"))]
        return commands.start_detached(
            recorded(self.record_file, group, [*unshare, "--", *boot]), self.log, env=variables
        )

    def entered(self, argv: Sequence[str], env: Mapping[str, str] | None, *, reads: bool) -> list[str]:
        """See `Host.entered`."""
        return self._entered(_ENTER, _as_foreground(argv))

    def interact(self, argv: Sequence[str]) -> int:
        """See `Host.interact`."""
        kept = {name: os.environ[name] for name in TERMINAL_VARIABLES if name in os.environ}
        entered = self._entered(_ENTER_INTERACTIVELY, _as_foreground(argv))
        with commands.start(entered, env=environment(kept), stdin=None, stdout=None, stderr=None) as process:
            previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                status = process.wait()
            finally:
                signal.signal(signal.SIGINT, previous)
        return status if status >= 0 else 128 - status

    def spawn(
        self,
        argv: Sequence[str],
        *,
        log: str = "/var/log/workload.log",
        env: Mapping[str, str] | None = None,
        directory: str = "/",
    ) -> int:
        """See `Host.spawn`."""
        inner = ["/bin/sh", "-c", SPAWN, "spawn", log, directory, *argv]
        done = commands.run(self._entered(_ENTER, inner), env=environment(env), check=False)
        if done.returncode != 0 or not done.stdout.strip().isdigit():
            raise commands.failure(argv, done.returncode, done.stderr)
        return int(done.stdout)

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """See `Host.kill`."""
        try:
            # A directory of /proc does as a pidfd (pidfd_send_signal(2)), also one of another PID namespace's /proc.
            descriptor = os.open(self.root / f"proc/{pid}", os.O_DIRECTORY | os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)

    @property
    def agent_pid(self) -> int | None:
        """See `Host.agent_pid`."""
        record = ProcessRecord.read(self._agent_record)
        if record is None or not self.alive:
            return None
        stat = self.stat(record.pid)
        same = stat is not None and not stat.is_dead and stat.start_ticks == record.start_ticks
        return record.pid if same else None

    def launch_agent(self, extra_args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        """See `Host.launch_agent`."""
        if self.agent_pid is not None:
            raise LabError(f"The agent of host {self.name} is running already.")
        # A socket that a killed agent left would look like one that only does not answer yet.
        self.path(AGENT_SOCKET).unlink(missing_ok=True)
        pid = self.spawn([*AGENT_COMMAND, *extra_args], log=AGENT_LOG, env=env)
        try:
            self._agent_record.write_text(self.path(f"/proc/{pid}/stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            self._agent_record.unlink(missing_ok=True)  # it has ended already: `wait_agent` tells why

    def wait_agent(self, timeout_seconds: float = AGENT_DEADLINE_SECONDS) -> None:
        """Wait until the agent's socket takes a connection."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(str(self.path(AGENT_SOCKET)))
                    return
                except OSError:
                    pass  # not there yet, or not listening yet
            ended = self.agent_pid is None
            if ended or time.monotonic() > deadline:
                what = "ended while it was starting" if ended else f"does not serve after {timeout_seconds:g} s"
                raise LabError(
                    f"The agent of host {self.name} {what}.",
                    hint=f"Its log is {AGENT_LOG} on the host.",
                    detail=commands.tail(self.path(AGENT_LOG)),
                )
            time.sleep(POLL_SECONDS)

    def kill_agent(
        self, number: signal.Signals = signal.SIGKILL, timeout_seconds: float = AGENT_DEADLINE_SECONDS
    ) -> None:
        """See `Host.kill_agent`."""
        pid = self.agent_pid
        if pid is not None:
            self.kill(pid, number)
            self.wait_ended(pid, timeout_seconds)

    def agent_log(self) -> str:
        """See `Host.agent_log`."""
        return self.path(AGENT_LOG).read_text(errors="replace")

    @property
    def _agent_record(self) -> Path:
        return self._directory / f"{self.name}.agent"

    def _entered(self, script: str, argv: Sequence[str]) -> list[str]:
        pid = self.pid
        enter = [commands.find("nsenter"), "--target", str(pid), *_NAMESPACES, "--"]
        return ["/bin/sh", "-ec", script, "enter", *cgroups.procs_files_beside(pid), "--", *enter, *argv]


def _as_foreground(argv: Sequence[str]) -> list[str]:
    """A command that ends when the nsenter before it is killed, and that Ctrl-C ends."""
    return ["setpriv", "--pdeathsig", "TERM", "env", "--chdir=/root", "--default-signal=INT,QUIT", *argv]
