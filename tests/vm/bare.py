"""Two machines that have nothing of phaul, and a client from which a person installs it there: as it is on day one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phaul.lab import building, commands
from phaul.lab.cluster import Lab
from phaul.lab.vm_host import VirtualHost

ROOT = Path(__file__).parents[2]
INSTALL_SECONDS = 500.0  # most of it is Python, under emulation
WHEEL_SECONDS = 120.0
PIP = "/opt/phaul/venv/bin/pip"
SSH = "/root/.ssh"


def make_wheel(directory: Path) -> Path:
    """What `make wheel` makes."""
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    commands.run([*argv, "--wheel-dir", str(directory), str(ROOT)], timeout_seconds=WHEEL_SECONDS)
    (wheel,) = directory.glob("phaul-*.whl")
    return wheel


@contextmanager
def bare_lab(name: str, progress: building.Progress = lambda line: None) -> Iterator[Lab]:
    """The lab; on its client phaul is installed from its wheel, and root's key opens both machines."""
    with Lab.up(name, virtual=True, bare=True, progress=progress) as lab:
        wheel = make_wheel(lab.shared)
        options = ["--quiet", "--no-deps", "--no-index", "--force-reinstall", "--no-warn-script-location"]
        lab.client.exec([PIP, "install", *options, f"/srv/shared/{wheel.name}"])
        directory = lab.client.path(SSH)
        directory.mkdir(mode=0o700, exist_ok=True)
        key = directory / "id_ed25519"
        key.write_bytes(lab.machines[0].ssh_key.read_bytes())
        key.chmod(0o600)
        yield lab


def know(lab: Lab, host: VirtualHost) -> None:
    """Write the host's key down on the client, as a person does who has compared it."""
    key = host.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
    known = lab.client.path(f"{SSH}/known_hosts")
    before = known.read_text() if known.exists() else ""
    known.write_text(before + f"{host.name} {' '.join(key)}\n")


def steps(output: str) -> dict[str, str]:
    """What became of each step, by name, of `--json`."""
    events: Sequence[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    return {event["step"]: event["state"] for event in events if event["event"] == "step"}


def put(host: VirtualHost, file: Path, path: str) -> None:
    """Copy a file of this machine to the host."""
    entered = host.entered(["sh", "-c", f"cat >{path}"], None, reads=True)
    subprocess.run(entered, input=file.read_bytes(), check=True, timeout=INSTALL_SECONDS)
