"""A host of a lab that is a virtual machine, with systemd and an agent that is one of its services.

Made by `phaul.lab.cluster`; `phaul.lab.host` says what can be done with it. `phaul.lab.guest` in the machine does it,
reached over a link of its own (eth1 there). Never touches another host.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from phaul.errors import LabError, UsageError
from phaul.lab import commands, guest_client, network, qemu, vm_code, vm_recipe
from phaul.lab.guest_client import GuestChannel
from phaul.lab.guest_path import GuestPath
from phaul.lab.host import (
    AGENT_DEADLINE_SECONDS,
    HOST_PATH,
    SPAWN,
    TERMINAL_VARIABLES,
    Host,
    environment,
    recorded,
)
from phaul.lab.records import HostDescription, LabDescription, ProcessRecord
from phaul.lab.vm_image import VmImage

BOOT_SECONDS = 400.0  # 15 s are usual, from a snapshot one; on a busy machine many times that
BOOT_POLL_SECONDS = 0.1
FIRST_ANSWER_SECONDS = 2.0
AGENT_START_SECONDS = 180.0  # of a Python with everything that phaul imports, under emulation: 7 s are usual
_EXECED = 'echo ready; exec "$@" >&2'


class VirtualHost(Host):
    """A virtual machine. The recorded process is QEMU."""

    def __init__(
        self, description: HostDescription, directory: Path, image: VmImage, switch: Path, lab: LabDescription
    ) -> None:
        super().__init__(description, directory)
        self._image = image
        self._switch = switch  # the record of the process that keeps the bridge's network namespace
        self._monitor = directory / f"{self.name}.monitor"
        self._address = network.management_address(description)
        self._bare = lab.bare
        self._size = lab.size

    @cached_property
    def _channel(self) -> GuestChannel:
        return GuestChannel(self._switch_pid, self._address)

    @property
    def _switch_pid(self) -> int:
        record = ProcessRecord.read(self._switch)
        if record is None or not record.alive:
            raise LabError("The lab's switch is not up.", hint="`phaul lab status` tells; `phaul lab up` starts.")
        return record.pid

    @property
    def pid(self) -> int:
        """QEMU's PID."""
        holder = self.holder
        if holder is None or not holder.alive:
            raise LabError(f"Host {self.name} is not up.", hint="`phaul lab status` tells; `phaul lab up` starts.")
        return holder.pid

    def path(self, path: str) -> GuestPath:
        """See `Host.path`; also of /proc and /sys, a call to the machine for each method."""
        return GuestPath.of(self._channel, path)

    @property
    def ssh_key(self) -> Path:
        """The private key that root of the machine lets in."""
        return self._image.ssh_key

    def launch(self, hosts: Sequence[HostDescription], group: Path | None) -> subprocess.Popen[bytes]:
        """Start the machine; it is up once `wait_up` has returned."""
        taps = {network.tap(self.name): self.mac, network.management_tap(self.name): network.management_mac(self.mac)}
        snapshot = self._snapshot(hosts)
        console = self.log.with_suffix(".console")
        argv = qemu.command_line(self._image, self._size, taps, self._settings(hosts), console, self._monitor, snapshot)
        enter = [commands.find("nsenter"), "--target", str(self._switch_pid), "--net", "--"]
        command = recorded(self.record_file, group, [*enter, "/bin/sh", "-c", _EXECED, "vm", *argv])
        return commands.start_detached(command, self.log, env={"PATH": HOST_PATH})

    def disconnect(self) -> None:
        """Give back the connection to the machine; it is made again when it is needed."""
        if "_channel" in self.__dict__:
            self._channel.close()

    def remembered(self, hosts: Sequence[HostDescription]) -> bool:
        """Whether the machine can go on from where it was after an earlier start, and need not boot."""
        return self._snapshot(hosts).exists()

    def wait_up(self, hosts: Sequence[HostDescription]) -> None:
        """Wait until the machine has started; it is remembered as it is then, for the next time."""
        deadline = time.monotonic() + BOOT_SECONDS
        snapshot = self._snapshot(hosts)
        resumed = snapshot.exists()
        try:
            if resumed:
                with qemu.Monitor.wait_open(self._monitor, deadline) as monitor:
                    monitor.wait_running(deadline)
            self._wait_answer(deadline)
        except (OSError, LabError) as error:
            snapshot.unlink(missing_ok=True)  # if that was it, the next one boots
            raise LabError(f"The virtual machine {self.name} did not start.", detail=self._said()) from error
        if not resumed:
            for command in self._warm_up:
                self.exec(command, check=False, timeout_seconds=BOOT_SECONDS)
            self._channel.close()
            with qemu.Monitor.wait_open(self._monitor, deadline) as monitor:
                monitor.save(snapshot)
        self._channel.ask("clock", unix_ns=time.time_ns())

    def install(self, archive: bytes) -> None:
        """Put phaul's code (`vm_code.archive`) in the place of what is there; a running agent does not notice."""
        command = self.entered(["/bin/sh", "-c", vm_code.INSTALL], None, reads=True)
        done = subprocess.run(command, input=archive, capture_output=True, check=False, timeout=BOOT_SECONDS)
        if done.returncode != 0:
            raise commands.failure(["install"], done.returncode, done.stderr.decode(errors="replace"))

    def entered(self, argv: Sequence[str], env: Mapping[str, str] | None, *, reads: bool) -> list[str]:
        """See `Host.entered`."""
        return self._command({"argv": list(argv), "environment": environment(env), "stdin": reads, "terminal": False})

    def interact(self, argv: Sequence[str]) -> int:
        """See `Host.interact`."""
        if not os.isatty(0):
            entered = self.entered(argv, None, reads=True)
            return commands.start(entered, stdin=None, stdout=None, stderr=None).wait()
        kept = {name: os.environ[name] for name in TERMINAL_VARIABLES if name in os.environ}
        request = {"argv": list(argv), "environment": environment(kept), "stdin": True, "terminal": True}
        status = commands.start(self._command(request), stdin=None, stdout=None, stderr=None).wait()
        return status if status >= 0 else 128 - status

    def spawn(
        self,
        argv: Sequence[str],
        *,
        log: str = "/var/log/workload.log",
        env: Mapping[str, str] | None = None,
        directory: str = "/",
    ) -> int:
        """See `Host.spawn`. It is in a scope of systemd's of its own."""
        scope = ["systemd-run", "--quiet", "--scope", "--collect", "--slice=workloads.slice", "--"]
        done = self.exec([*scope, "/bin/sh", "-c", SPAWN, "spawn", log, directory, *argv], env=env, check=False)
        if done.returncode != 0 or not done.stdout.strip().isdigit():
            raise commands.failure(argv, done.returncode, done.stderr)
        return int(done.stdout)

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """See `Host.kill`."""
        try:
            self._channel.ask("kill", pid=pid, number=int(number))
        except ProcessLookupError:
            pass

    def systemctl(self, *words: str, check: bool = True, timeout_seconds: float = AGENT_START_SECONDS) -> str:
        """Ask the machine's systemd; give what it prints."""
        return self.exec(["systemctl", *words], check=check, timeout_seconds=timeout_seconds).stdout.strip()

    @property
    def agent_pid(self) -> int | None:
        """See `Host.agent_pid`."""
        if not self.alive:
            return None
        pid = int(self.systemctl("show", "--property=MainPID", "--value", vm_recipe.AGENT_UNIT) or 0)
        return pid if pid and self.running(pid) else None

    def configure_agent(self, env: Mapping[str, str] | None = None) -> None:
        """Say which variables an agent has, beside the usual ones, that starts from now on."""
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in (env or {}).items()]
        self.path(vm_recipe.AGENT_ENVIRONMENT).write_text(vm_recipe.AGENT_SETTINGS + "".join(lines))

    def launch_agent(self, extra_args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        """See `Host.launch_agent`; `env` is for this start and those that systemd makes after it."""
        if extra_args:
            raise UsageError("A virtual machine's agent is given its options in `env`, as PHAUL_NAME.")
        self.configure_agent(env)
        self.systemctl("reset-failed", vm_recipe.AGENT_UNIT, check=False)
        self.systemctl("start", "--no-block", vm_recipe.AGENT_UNIT)

    def wait_agent(self, timeout_seconds: float = AGENT_START_SECONDS) -> None:
        """See `Host.wait_agent`."""
        state = self.exec(["systemctl", "start", vm_recipe.AGENT_UNIT], check=False, timeout_seconds=timeout_seconds)
        if state.returncode != 0:
            raise LabError(
                f"The agent of host {self.name} does not serve.",
                hint=f"`journalctl -u {vm_recipe.AGENT_UNIT}` on the host tells.",
                detail=commands.last_lines(self.agent_log()),
            )

    def kill_agent(
        self, number: signal.Signals = signal.SIGKILL, timeout_seconds: float = AGENT_DEADLINE_SECONDS
    ) -> None:
        """See `Host.kill_agent`; systemd starts none in its place."""
        if number == signal.SIGTERM:
            self.systemctl("stop", vm_recipe.AGENT_UNIT, timeout_seconds=timeout_seconds)
            return
        pid = self.agent_pid
        if pid is not None:
            self.kill(pid, number)
            self.systemctl("stop", vm_recipe.AGENT_UNIT, timeout_seconds=timeout_seconds)

    def agent_log(self) -> str:
        """See `Host.agent_log`."""
        return self.exec(["journalctl", "--no-pager", "--output=cat", f"--unit={vm_recipe.AGENT_UNIT}"]).stdout

    def _command(self, request: Mapping[str, object]) -> list[str]:
        self.pid  # noqa: B018 - says so when the machine is down
        program = [sys.executable, "-I", "-S", guest_client.__file__]
        return [*program, str(self._switch_pid), self._address, json.dumps(request)]

    def _settings(self, hosts: Sequence[HostDescription]) -> dict[str, str]:
        return {
            "name": self.name,
            "number": str(network.number(self.description)),
            "id": hashlib.md5(self.mac.encode(), usedforsecurity=False).hexdigest(),
            "hosts": ",".join(f"{host.name}:{network.number(host)}" for host in hosts),
            "pid": str(self.description.first_pid),
            "hidden": ",".join(vm_recipe.HIDDEN_WHEN_BARE) if self._bare else "",
            **network.PREFIXES,
        }

    @property
    def _warm_up(self) -> tuple[tuple[str, ...], ...]:
        return vm_recipe.WARM_UP_BARE if self._bare else vm_recipe.WARM_UP

    def _snapshot(self, hosts: Sequence[HostDescription]) -> Path:
        """Where the machine's state after its start is kept: one for each set of settings."""
        settings = repr((self._settings(hosts), self.mac, self._size, qemu.fingerprint(), self._warm_up))
        key = hashlib.sha256(settings.encode()).hexdigest()[:12]
        return self._image.directory / f"{self.name}-{key}.state"

    def _wait_answer(self, deadline: float) -> None:
        while True:
            try:
                self._channel.ask("clock", unix_ns=time.time_ns(), timeout_seconds=FIRST_ANSWER_SECONDS)
                return
            except OSError:
                self._channel.close()
                if not self.alive or time.monotonic() > deadline:
                    raise
                time.sleep(BOOT_POLL_SECONDS)

    def _said(self) -> str:
        return "\n".join(filter(None, (commands.tail(self.log), commands.tail(self.log.with_suffix(".console")))))
