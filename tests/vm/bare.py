"""Two machines that have nothing of phaul, and a client from which a person installs it there: as it is on day one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import phaul
from phaul.lab import building, commands
from phaul.lab.cluster import Lab
from phaul.lab.vm_host import VirtualHost

ROOT = Path(__file__).parents[2]
INSTALL_SECONDS = 500.0  # most of it is Python, under emulation
WHEEL_SECONDS = 120.0
PIP = "/opt/phaul/venv/bin/pip"
SSH = "/root/.ssh"


def make_wheel(directory: Path, source: Path = ROOT) -> Path:
    """What `make wheel` makes."""
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    commands.run([*argv, "--wheel-dir", str(directory), str(source)], timeout_seconds=WHEEL_SECONDS)
    (wheel,) = directory.glob("phaul-*.whl")
    return wheel


def make_newer_wheel(directory: Path, version: str) -> Path:
    """The same, of the checkout's code as a later version."""
    with tempfile.TemporaryDirectory(prefix="phaul-newer-") as scratch:
        source = Path(scratch)
        shutil.copytree(ROOT / "phaul", source / "phaul", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("LICENSE", "README.md", "pyproject.toml"):
            shutil.copy(ROOT / name, source)
        for file in (source / "pyproject.toml", source / "phaul/__init__.py"):
            before, _, after = file.read_text().partition(f'"{phaul.__version__}"')
            assert after
            file.write_text(f'{before}"{version}"{after}')
        return make_wheel(directory, source)


def install(lab: Lab, wheel: Path) -> None:
    """Install it on the client, from the shared directory."""
    options = ["--quiet", "--no-deps", "--no-index", "--force-reinstall", "--no-warn-script-location"]
    lab.client.exec([PIP, "install", *options, f"/srv/shared/{wheel.relative_to(lab.shared)}"])


@contextmanager
def bare_lab(name: str, progress: building.Progress = lambda line: None) -> Iterator[Lab]:
    """The lab; on its client phaul is installed from its wheel, and root's key opens both machines."""
    with Lab.up(name, virtual=True, bare=True, progress=progress) as lab:
        install(lab, make_wheel(lab.shared))
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


def steps(output: str, host: str) -> dict[str, str]:
    """What became of each step for a host, by name, of `--json`."""
    events: Sequence[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    return {event["step"]: event["state"] for event in events if event["event"] == "step" and event["host"] == host}


def put(host: VirtualHost, file: Path, path: str) -> None:
    """Copy a file of this machine to the host."""
    entered = host.entered(["sh", "-c", f"cat >{path}"], None, reads=True)
    subprocess.run(entered, input=file.read_bytes(), check=True, timeout=INSTALL_SECONDS)
