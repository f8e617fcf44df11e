"""What a host is before phaul is brought to it, asked in one command. Used by the modules beside this one."""

from __future__ import annotations

from dataclasses import dataclass, field

from phaul.errors import InstallError
from phaul.install.bundle import MINIMUM_GLIBC, MINIMUM_PYTHON, Platform
from phaul.install.ssh import SshHost

DIRECTORY = "/opt/phaul"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = {"criu": "criu", "nft": "nftables", "ip": "iproute2", "python3": "python3"}  # and their Debian packages

# One NAME=VALUE a line. Nothing of it changes the host. Argument: files whose content is asked for, as checksums.
_LOOK = r"""PATH={path}
uid=$(id -u); machine=$(uname -m)
echo "uid=$uid"; echo "machine=$machine"
(. /etc/os-release && echo "system=$PRETTY_NAME")
for program in criu nft ip python3 systemctl apt-get; do
    found=$(command -v $program) && echo "program.$program=$found"
done
if command -v python3 >/dev/null; then python3 -I -S -c '
import os, sys
print("python=%s %d %d" % (os.path.realpath(sys.executable), *sys.version_info[:2]))
print("libc=" + os.confstr("CS_GNU_LIBC_VERSION"))
'; fi
[ -d /run/systemd/system ] && echo systemd=yes
[ -e /proc/net/if_inet6 ] && echo ip6=yes
echo "packaged=$(dpkg-query -W -f '${{db:Status-Status}} ${{Version}}' phaul 2>/dev/null || true)"
echo "current=$(readlink {directory}/current 2>/dev/null || true)"
echo "active=$(systemctl is-active phaul-agent 2>/dev/null || true)"
echo "enabled=$(systemctl is-enabled phaul-agent 2>/dev/null || true)"
for file in {files}; do
    [ -e "$file" ] && echo "file.$file=$(sha256sum <"$file" | cut -d' ' -f1)"
done
echo end=yes
"""


@dataclass(frozen=True, slots=True)
class HostState:
    """What was found. `programs`: name to path. `files`: path to SHA-256, of those that are there."""

    system: str
    machine: str
    python: str
    python_version: tuple[int, int]
    glibc: tuple[int, int]
    systemd: bool
    ip6: bool
    packaged: str  # the version of the Debian package phaul; "" where it is not installed
    current: str  # the version that /opt/phaul/current leads to
    active: bool
    enabled: bool
    programs: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def platform(self) -> Platform:
        """What a bundle for this host must be for."""
        return Platform(self.python_version, self.machine, self.glibc)

    @property
    def missing(self) -> list[str]:
        """The programs that are needed and not there."""
        return [program for program in PROGRAMS if program not in self.programs]


def look(host: SshHost, files: tuple[str, ...] = ()) -> HostState:
    """Ask. Raises `SshError` where the person may not be root there."""
    script = _LOOK.format(path=SYSTEM_PATH, directory=DIRECTORY, files=" ".join(files) or "''")
    output = host.check(script, "the host could not be looked at")
    found = dict(line.partition("=")[::2] for line in output.splitlines())
    if found.get("end") != "yes" or found.get("uid") != "0":
        raise InstallError(
            f"phaul must be root on {host.target}, and {host.user} is not",
            hint="Log in as root, or as a user who may use sudo there without a password.",
        )
    path, *version = (found.get("python") or " 0 0").split(" ")
    libc = found.get("libc", "").partition(" ")
    numbers = [int(part) for part in libc[2].split(".")[:2]] if libc[0] == "glibc" else [0, 0]
    status, _, packaged = found.get("packaged", "").partition(" ")
    return HostState(
        system=found.get("system", "").strip('"'),
        machine=found.get("machine", ""),
        python=path,
        python_version=(int(version[-2]), int(version[-1])),
        glibc=(numbers[0], numbers[1]),
        systemd="systemd" in found,
        ip6="ip6" in found,
        packaged=packaged if status == "installed" else "",
        current=found.get("current", ""),
        active=found.get("active") == "active",
        enabled=found.get("enabled") == "enabled",
        programs={name.removeprefix("program."): value for name, value in found.items() if name.startswith("program.")},
        files={name.removeprefix("file."): value for name, value in found.items() if name.startswith("file.")},
    )


def require_python(state: HostState, target: str) -> None:
    """Raise `InstallError` where nothing of ours could run."""
    minimum = "{}.{}".format(*MINIMUM_PYTHON)
    if state.python_version < MINIMUM_PYTHON:
        version = "{}.{}".format(*state.python_version)
        raise InstallError(
            f"{target} has "
            + (f"Python {version}" if state.python else "no Python")
            + f"; phaul needs {minimum} or newer",
            hint=f"It runs {state.system}. Debian has it from 12 on: `apt-get install python3`.",
        )
    if state.glibc < MINIMUM_GLIBC:
        raise InstallError(
            f"{target} has no GNU C library of version {'{}.{}'.format(*MINIMUM_GLIBC)} or newer, which phaul's "
            "packages need",
            hint=f"It runs {state.system}. There, install phaul from source: docs/install.md.",
        )
