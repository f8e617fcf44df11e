"""One host of a lab, as tests, benchmarks and the demo see it: everything one does on it.

What a host is made of is in `phaul.lab.namespace_host` and `phaul.lab.vm_host`; `phaul.lab.cluster` makes them. A
process that is to be migrated is started with `spawn`, which leaves no descriptor in it from outside the host. Never
touches another host.
"""

from __future__ import annotations

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from phaul.errors import LabError
from phaul.lab import commands, records
from phaul.lab.records import HostDescription, ProcessRecord
from phaul.system import procfs

AGENT_SOCKET = "/run/phaul/agent.sock"
AGENT_LOG = "/var/log/phaul-agent.log"
AGENT_DEADLINE_SECONDS = 20.0  # half a second is usual; compiling phaul's modules for a new image takes a few
SHARED_NAME = "shared"
SHARED_DIRECTORY = f"/srv/{SHARED_NAME}"  # the same files on every namespace host
HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERMINAL_VARIABLES = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
POLL_SECONDS = 0.005

# Inside a host: a log, a directory and a command. The PID is told before the log replaces our pipe, and exec keeps it.
SPAWN = """command -v "$3" >/dev/null || { echo "there is no command $3" >&2; exit 127; }
exec setsid --fork /bin/sh -c 'cd "$1" && echo $$ && log=$0 && shift && exec "$@" </dev/null >>"$log" 2>&1' "$@"
"""


class Host(ABC):
    """One host.

    Invariant: while `alive`, the recorded process holds the host up, and its death is the end of every process of the
    host. Owns nothing but what stands in the lab's directory: two objects may serve the same host.
    """

    def __init__(self, description: HostDescription, directory: Path) -> None:
        self.name = description.name
        self.ip4 = description.ip4
        self.ip6 = description.ip6
        self.mac = description.mac
        self.description = description
        self._directory = directory

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.ip4}>"

    @property
    def record_file(self) -> Path:
        """Where the process that holds the host up has recorded itself."""
        return self._directory / f"{self.name}.process"

    @property
    def log(self) -> Path:
        """What was said while the host was starting (on the machine)."""
        return self._directory / f"{self.name}.log"

    @property
    def holder(self) -> ProcessRecord | None:
        """The process that holds the host up, None when the host was never started."""
        return ProcessRecord.read(self.record_file)

    @property
    def alive(self) -> bool:
        """Whether the host is up."""
        holder = self.holder
        return holder is not None and holder.alive

    @property
    @abstractmethod
    def pid(self) -> int:
        """The PID, as the machine sees it, of the process that the host ends with."""

    @abstractmethod
    def path(self, path: str) -> Path:
        """A file of the host, given as the host sees it, to be read and written from here."""

    @abstractmethod
    def entered(self, argv: Sequence[str], env: Mapping[str, str] | None, *, reads: bool) -> list[str]:
        """
        The command line that runs a command on the host, in the environment `environment(env)`.

        Args:
            reads: whether the command may read our standard input.
        """

    def exec(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout_seconds: float = commands.DEFAULT_TIMEOUT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end; with `check`, one that fails is a `LabError`."""
        entered = self.entered(argv, env, reads=input is not None)
        done = commands.run(entered, input=input, env=environment(env), check=False, timeout_seconds=timeout_seconds)
        if check and done.returncode != 0:
            raise commands.failure(argv, done.returncode, done.stderr or done.stdout)
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: commands.Stream = subprocess.DEVNULL,
        stdout: commands.Stream = subprocess.PIPE,
        stderr: commands.Stream = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Start a command on the host and leave it to the caller; killing it sends SIGTERM to the command."""
        entered = self.entered(argv, env, reads=stdin != subprocess.DEVNULL)
        return commands.start(entered, env=environment(env), stdin=stdin, stdout=stdout, stderr=stderr)

    @abstractmethod
    def interact(self, argv: Sequence[str]) -> int:
        """Run a command on the host with the caller's own terminal, and return its exit status."""

    @abstractmethod
    def spawn(
        self,
        argv: Sequence[str],
        *,
        log: str = "/var/log/workload.log",
        env: Mapping[str, str] | None = None,
        directory: str = "/",
    ) -> int:
        """
        Start a daemon on the host that CRIU can dump.

        It leads a session of its own, is a child of the host's PID 1, reads from the host's /dev/null and writes to
        `log` on the host.

        Returns:
            Its PID as the host sees it.
        """

    @abstractmethod
    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a process of the host, by the host's PID; one that is gone is no error."""

    @property
    @abstractmethod
    def agent_pid(self) -> int | None:
        """The agent's PID as the host sees it, None when the lab's agent does not run."""

    @abstractmethod
    def launch_agent(self, extra_args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        """Start the host's agent; `wait_agent` tells when it serves."""

    @abstractmethod
    def wait_agent(self, timeout_seconds: float = AGENT_DEADLINE_SECONDS) -> None:
        """Wait until the agent serves."""

    @abstractmethod
    def kill_agent(
        self, number: signal.Signals = signal.SIGKILL, timeout_seconds: float = AGENT_DEADLINE_SECONDS
    ) -> None:
        """End the agent by a signal and wait until it is reaped; does nothing when it does not run."""

    @abstractmethod
    def agent_log(self) -> str:
        """What the agent has logged."""

    def start_agent(self, extra_args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        """Start the host's agent and wait until it serves."""
        self.launch_agent(extra_args, env)
        self.wait_agent()

    def stop_agent(self, timeout_seconds: float = AGENT_DEADLINE_SECONDS) -> None:
        """Ask the agent to end and wait until it has; does nothing when it does not run."""
        self.kill_agent(signal.SIGTERM, timeout_seconds)

    def stat(self, pid: int) -> procfs.ProcessStat | None:
        """What the host's kernel tells of a process of the host, None when there is none with this PID."""
        try:
            return procfs.parse_stat(self.path(f"/proc/{pid}/stat").read_text(errors="surrogateescape"))
        except (FileNotFoundError, ProcessLookupError):
            return None

    def running(self, pid: int) -> bool:
        """Whether a process of the host (by the host's PID) has not ended."""
        stat = self.stat(pid)
        return stat is not None and not stat.is_dead

    def wait_ended(self, pid: int, timeout_seconds: float = commands.DEFAULT_TIMEOUT_SECONDS) -> None:
        """Wait until a process of the host is gone, and reaped."""
        deadline = time.monotonic() + timeout_seconds
        while self.stat(pid) is not None:
            if time.monotonic() > deadline:
                raise LabError(f"Process {pid} of host {self.name} did not end within {timeout_seconds:g} s.")
            time.sleep(POLL_SECONDS)


def recorded(record: Path, group: Path | None, argv: Sequence[str]) -> list[str]:
    """The command line that first writes down its process, and joins a group, and then becomes `argv`."""
    procs = str(group / "cgroup.procs") if group else ""
    return ["/bin/sh", "-c", records.RECORDED_LAUNCH, "launch", str(record), procs, *argv]


def environment(added: Mapping[str, str] | None) -> dict[str, str]:
    """The variables of a command on a host."""
    return {"PATH": HOST_PATH, "HOME": "/root", "LANG": "C.UTF-8", **(added or {})}
