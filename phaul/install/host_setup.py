"""Makes a host ready over SSH, step by step: packages, phaul, certificate, units, agent. What is there stays untouched.

Used by `phaul host`. A step that finds what it would make says "unchanged"; one that fails leaves the steps before it
done, and typing the same again goes on from there. The files: /opt/phaul/VERSION-KEY with `current` leading to the one
in use, /usr/local/bin/phaul, units in /etc/systemd/system, and what the agent has in /var/lib/phaul.
"""

from __future__ import annotations

import hashlib
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

import phaul
from phaul.errors import InstallError
from phaul.install import registry
from phaul.install.bundle import Bundle
from phaul.install.host_facts import DIRECTORY, PROGRAMS, SYSTEM_PATH, HostState, look, require_python
from phaul.install.ssh import SshHost
from phaul.install.steps import Report, step_of

AGENT_UNIT = "phaul-agent.service"
SETTINGS = "/etc/phaul/agent.env"
TRUST = "/var/lib/phaul/trust"
UNIT_DIRECTORY = "/etc/systemd/system"
LINK = "/usr/local/bin/phaul"
_PLACES = {".service": UNIT_DIRECTORY, ".socket": UNIT_DIRECTORY, ".conf": "/etc/tmpfiles.d"}


class HostSetup:
    """The steps, for one host. Each can be called again; `add` calls them in order."""

    def __init__(self, host: SshHost, report: Report) -> None:
        self._host = host
        self._report = report
        self._units = unit_files()
        self.state = look(host, (*self._units, SETTINGS))
        self.changed = False
        if not self.state.systemd:
            raise InstallError(
                f"{host.target} does not run systemd, under which phaul's agent is installed",
                hint="docs/install.md says how to install and start it by hand.",
            )

    def packages(self) -> None:
        """Install CRIU and the other programs that phaul calls, with the distribution's package manager."""
        with step_of(self._report, "packages") as step:
            missing = self.state.missing
            if not missing:
                step.unchanged("CRIU, nftables, iproute2 and Python are there")
                return
            self._install(sorted(PROGRAMS[program] for program in missing))
            self.state = look(self._host, (*self._units, SETTINGS))
            if self.state.missing:
                raise InstallError(f"{', '.join(self.state.missing)} is still not there on {self._host.target}")
            step.done("installed " + ", ".join(sorted(PROGRAMS[program] for program in missing)))

    def program(self) -> None:
        """Bring phaul, in a virtual environment of its own."""
        with step_of(self._report, "phaul") as step:
            if self.state.packaged:
                self._require_own_version()
                step.unchanged(f"the Debian package {self.state.packaged} is installed")
                return
            require_python(self.state, str(self._host.target))
            with tempfile.TemporaryDirectory(prefix="phaul-") as scratch:
                bundle = registry.bundle_for(self.state.platform, Path(scratch))
                key = bundle.key
                if self.state.current == key:
                    step.unchanged(f"{key} is there")
                    return
                self._unpack(bundle, key)
            self.changed = True
            step.done(f"{key} for {self.state.platform}")

    def units(self, port: int) -> None:
        """Put the agent's units, and its settings where there are none."""
        with step_of(self._report, "units") as step:
            listen = f"{'[::]' if self.state.ip6 else '0.0.0.0'}:{port}"
            wanted = {} if self.state.packaged else dict(self._units)
            if SETTINGS not in self.state.files:
                wanted[SETTINGS] = f"# Options of `phaul agent --help`, as PHAUL_NAME=VALUE.\nPHAUL_LISTEN={listen}\n"
            stale = {path: text for path, text in wanted.items() if self.state.files.get(path) != _digest(text)}
            for path, text in stale.items():
                put(self._host, path, text.encode(), 0o644)
            if not stale:
                step.unchanged("those of the Debian package" if self.state.packaged else "")
                return
            self._host.check(
                "systemctl daemon-reload; systemd-tmpfiles --create phaul.conf", "units could not be loaded"
            )
            self.changed = True
            step.done(", ".join(Path(path).name for path in stale))

    def agent(self) -> None:
        """Have the agent run, now and from every start on."""
        with step_of(self._report, "agent") as step:
            if self.state.active and self.state.enabled and not self.changed:
                step.unchanged("runs")
                return
            act = "restart" if self.state.active else "start"
            done = self._host.run(f"systemctl enable --quiet {AGENT_UNIT} && systemctl {act} {AGENT_UNIT}")
            if done.status != 0:
                said = self._host.run(f"journalctl --no-pager --output cat --lines 30 --unit {AGENT_UNIT}").output
                raise InstallError(
                    f"the agent on {self._host.target} does not start",
                    hint=f"`journalctl -u {AGENT_UNIT}` there tells more; then type this again.",
                    detail=f"{done.complaints}\n{said}".strip(),
                )
            step.done(f"{act}ed")

    def _install(self, packages: Sequence[str]) -> None:
        target = self._host.target
        names = " ".join(packages)
        if "apt-get" not in self.state.programs:
            raise InstallError(
                f"{target} lacks {', '.join(packages)}, and phaul installs packages with apt only",
                hint=f"It runs {self.state.system}. Install them there ({names}), and type this again.",
            )
        quiet = f"export PATH={SYSTEM_PATH} DEBIAN_FRONTEND=noninteractive; "
        updated = self._host.run(f"{quiet}apt-get update -q")  # what it has may do, and `policy` tells
        for package in packages:
            policy = self._host.run(f"{quiet}apt-cache policy {package}").output
            if "Candidate:" not in policy or "Candidate: (none)" in policy:
                raise InstallError(
                    f"apt on {target} ({self.state.system}) has no package {package}",
                    hint=_elsewhere(package),
                    detail=(updated.complaints or "")[-2000:],
                )
        self._host.check(
            f"{quiet}apt-get install -y -q --no-install-recommends {names}",
            f"{names} could not be installed",
            hint="Install it there by hand, and type this again.",
        )

    def _require_own_version(self) -> None:
        version = self.state.packaged.partition("-")[0].partition("+")[0]
        if version != phaul.__version__:
            raise InstallError(
                f"{self._host.target} has phaul {version} as a Debian package, and this is {phaul.__version__}",
                hint="Agents of different versions refuse each other. Install the same package there: "
                "`make deb`, then `apt-get install ./phaul_….deb` there.",
            )

    def _unpack(self, bundle: Bundle, key: str) -> None:
        home = f"{DIRECTORY}/{key}"
        archive = bundle.archive(home, self.state.python)
        # A directory with this name is whole; the link changes from one to the other in one step.
        script = f"""set -e
umask 022
mkdir -p {DIRECTORY}
rm -rf {DIRECTORY}/new
mkdir {DIRECTORY}/new
tar -C {DIRECTORY}/new -xzf - --no-same-owner
rm -rf {home}
mv {DIRECTORY}/new{home} {home}
rm -rf {DIRECTORY}/new
{home}/bin/python -c "import phaul"
ln -sfn {key} {DIRECTORY}/current.new
mv -T {DIRECTORY}/current.new {DIRECTORY}/current
[ -e {LINK} ] && [ ! -L {LINK} ] && mv {LINK} {LINK}.before
ln -sfn {DIRECTORY}/current/bin/phaul {LINK}
for other in {DIRECTORY}/[0-9]*-*; do
    case $other in {home}|{DIRECTORY}/{self.state.current or "none"}) ;; *) rm -rf "$other" ;; esac
done
"""
        self._host.check(script, "phaul could not be put", input=archive)


def unit_files() -> dict[str, str]:
    """The units and their like: where they belong on a host, and what they say."""
    source = Path(phaul.__file__).parent / "systemd"
    files: dict[str, str] = {}
    for file in sorted(source.iterdir()):
        if file.suffix in _PLACES:
            files[f"{_PLACES[file.suffix]}/{file.name}"] = file.read_text()
    return files


def put(host: SshHost, path: str, data: bytes, mode: int) -> None:
    """Replace a file on the host as a whole. Its directory is made, as private as the file."""
    quoted, directory = shlex.quote(path), shlex.quote(str(Path(path).parent))
    private = "" if mode & 0o077 else "umask 077; "
    script = f"set -e; {private}mkdir -p {directory}; cat >{quoted}.new; chmod {mode:o} {quoted}.new; "
    host.check(script + f"mv {quoted}.new {quoted}", f"{path} could not be written", input=data)


def remove(host: SshHost, report: Report) -> None:
    """Stop the agent and take away what `HostSetup` brought. Workloads run on, and packages stay."""
    step = step_of(report, "agent")
    with step:
        stop = f"systemctl disable --now {AGENT_UNIT}; systemctl stop phaul-workloads.service"
        host.check(f"{{ {stop}; }} 2>/dev/null || true", "the agent could not be stopped")
        step.done("stopped")
    step = step_of(report, "files")
    with step:
        files = " ".join([*unit_files(), SETTINGS])
        script = f"""set -e
if ! dpkg-query -W -f '${{db:Status-Status}}' phaul 2>/dev/null | grep -qx installed; then
    rm -f {files}
    if [ -L {LINK} ]; then rm -f {LINK}; fi
    for version in {DIRECTORY}/[0-9]*-* {DIRECTORY}/current; do rm -rf "$version"; done
    rmdir {DIRECTORY} /etc/phaul 2>/dev/null || true
    systemctl daemon-reload
fi
rm -rf {TRUST}
"""
        host.check(script, "not all could be removed")
        step.done("removed; what the agent wrote of migrations past stays in /var/lib/phaul")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _elsewhere(package: str) -> str:
    if package != "criu":
        return f"Install {package} there by other means, and type this again."
    return (
        "Debian 13 has criu in its main section; Debian 12's is too old for its kernel, and newer ones are in Debian "
        "unstable (add it to apt's sources with a low priority, then `apt-get install criu/sid`), or can be built from "
        "https://github.com/checkpoint-restore/criu. Put it in PATH there, and type this again."
    )


def state_of(host: SshHost) -> HostState:
    """What is on a host now."""
    return look(host, (*unit_files(), SETTINGS))
