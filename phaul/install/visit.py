"""An agent for one migration, on a host that has only an SSH server, CRIU and Python: brought, and gone afterwards.

Used by `phaul migrate --to ssh://…`. Everything of it is in one directory below /var/tmp, and a unit in
/run/systemd/system. The agent ends by itself once it has had nothing to do for a minute, however this side ended, and
its unit removes the rest; `leave` only says that it need not wait. It never ends while it holds a copy: it is systemd's
child, not the SSH connection's, and started again if it fails. What was restored is not its child for good, and stays.
"""

from __future__ import annotations

import secrets
import shlex
import tempfile
import time
from pathlib import Path
from typing import Self

from phaul.errors import InstallError
from phaul.install import registry
from phaul.install.host_facts import HostState, look, require_python
from phaul.install.host_setup import put
from phaul.install.ssh import SshHost
from phaul.trust.store import HOST_FILE, LIST_FILE

PREFIX = "phaul-visit-"
IDLE_SECONDS = 60
GONE_SECONDS = 120.0  # how long `leave` watches; a second is usual
START_SECONDS = 180

# KillMode: what was restored may be in this unit's group, and outlives the agent. Delegate: its group is CRIU's to use.
_UNIT = """[Unit]
Description=phaul, for one migration that was started over SSH
StartLimitIntervalSec=0
ConditionPathExists={home}/bin/phaul
CollectMode=inactive-or-failed

[Service]
Type=notify
ExecStart={home}/bin/phaul agent
Environment=PHAUL_LISTEN={listen} PHAUL_PAGE_PORT={page_port} PHAUL_EXIT_WHEN_IDLE={idle}
Environment=PHAUL_SOCKET=/run/{name}/agent.sock PHAUL_RUNTIME_DIR=/run/{name} PHAUL_STATE_DIR={home}/state
Restart=on-failure
RestartSec=1
TimeoutStartSec={start}
WatchdogSec=60
KillMode=process
Delegate=yes
TimeoutStopSec=600
ExecStopPost=/bin/sh -c '[ "$SERVICE_RESULT" != success ] || {sweep}'
"""


class Visit:
    """The agent, from `begin` on. Owns nothing here: the SSH connection is the caller's, and may break."""

    def __init__(self, host: SshHost) -> None:
        self._host = host
        self.state: HostState = look(host)
        self.name = PREFIX + secrets.token_hex(4)
        self.home = f"/var/tmp/{self.name}"
        self._unit = f"/run/systemd/system/{self.name}.service"

    def require(self) -> None:
        """Raise `InstallError` where no agent could run there, or one does already. Changes nothing."""
        target = self._host.target
        if self.state.active:
            raise InstallError(
                f"{target} has an agent already", hint=f"Use that: --to {target.host}, if it trusts this host."
            )
        require_python(self.state, str(target))
        if not self.state.systemd:
            raise InstallError(
                f"{target} does not run systemd, which has to look after the agent there",
                hint="Install phaul there by hand: docs/install.md.",
            )
        if "criu" not in self.state.programs:
            raise InstallError(
                f"{target} has no CRIU", hint="Install it there (Debian: `apt-get install criu`), and type this again."
            )

    def begin(self, pem: str, trust_list: str, port: int) -> None:
        """Bring phaul and a certificate, and start the agent; what fails is taken away again."""
        quoted = shlex.quote(self.home)
        try:
            with tempfile.TemporaryDirectory(prefix="phaul-") as scratch:
                bundle = registry.bundle_for(self.state.platform, Path(scratch))
                archive = bundle.archive(self.home, self.state.python)
            script = (
                f"set -e; umask 077; mkdir {quoted}; tar -C / -xzf - --no-same-owner; mkdir -p {quoted}/state/trust"
            )
            self._host.check(script, "phaul could not be put", input=archive)
            put(self._host, f"{self.home}/state/trust/{LIST_FILE}", trust_list.encode(), 0o600)
            put(self._host, f"{self.home}/state/trust/{HOST_FILE}", pem.encode(), 0o600)
            unit = _UNIT.format(
                home=self.home,
                name=self.name,
                # Out of sight first: to remove some thousand files takes a slow host its time.
                sweep=f"{{ mv {self.home} {self.home}.gone; rm -f {self._unit}; systemctl daemon-reload; "
                f"rm -rf {self.home}.gone /run/{self.name}; }}",
                listen=f"{'[::]' if self.state.ip6 else '0.0.0.0'}:{port}",
                page_port=port + 1,
                idle=IDLE_SECONDS,
                start=START_SECONDS,
            )
            put(self._host, self._unit, unit.encode(), 0o644)
            self._start(port)
        except BaseException:
            self._sweep()
            raise

    def over(self, host: SshHost) -> Self:
        """Go on over another connection to the same host."""
        self._host = host
        return self

    def leave(self, seconds: float = GONE_SECONDS) -> bool:
        """Tell the agent that it may go as soon as it holds nothing; whether it has gone while this looked."""
        self._host.run(f"systemctl kill --kill-whom=main --signal=USR1 {self.name}.service")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._host.run(f"! ls -d {self._unit} {self.home} {self.home}.gone 2>/dev/null | grep -q .").status == 0:
                return True
            time.sleep(0.5)
        return False

    def _start(self, port: int) -> None:
        done = self._host.run(f"systemctl daemon-reload && systemctl start {self.name}.service")
        if done.status != 0:
            said = self._host.run(f"journalctl --no-pager --output cat --lines 30 --unit {self.name}.service").output
            raise InstallError(
                f"the agent for this migration does not start on {self._host.target}",
                hint=f"Are the ports {port} and {port + 1} free there?",
                detail=f"{done.complaints}\n{said}".strip(),
            )

    def _sweep(self) -> None:
        """It has done nothing yet, so nothing can be lost."""
        try:
            self._host.run(
                f"systemctl stop {self.name}.service 2>/dev/null; "
                f"rm -rf {shlex.quote(self.home)} /run/{self.name} {self._unit}; systemctl daemon-reload"
            )
        except InstallError:
            pass  # the connection broke: what is there is files, and an agent that ends by itself
