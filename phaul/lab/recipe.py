"""What the image of a lab host is made of, and the key that changes with it.

Called by `phaul.lab.image`. Never looks at what is installed: a recipe is text, and its key is a hash of that text.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import phaul

SUITE = "trixie"
# Debian's stable CRIU (4.1.1) cannot dump an INET socket on Linux >= 6.16 (criu #2705, #2718); 4.2 is in sid only.
CRIU_SUITE = "sid"
CRIU_PACKAGES = ("criu", "libcompel1", "libnet1", "libnet9", "libnl-3-200")
PACKAGES = (
    "criu",
    "curl",
    "iproute2",
    "iptables",
    "iputils-ping",
    "nftables",
    "procps",
    "python3",
    "python3-venv",
    "python3-websockets",
    "redis-server",
)
UNPACKED_WITHOUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")

VENV = "/opt/phaul/venv"
SOURCE = "/opt/phaul/src"
PYTHON_CACHE = "/var/cache/phaul/pycache"

# The source is mounted read-only, so that Python's own place for compiled modules is not writable. An option of the
# interpreter, not a variable: what phaul starts must not inherit it.
LAUNCHER = f"""#!{VENV}/bin/python -Xpycache_prefix={PYTHON_CACHE}
import sys

from phaul.cli.main import main

sys.exit(main())
"""

APT_PREFERENCES = f"""Package: *
Pin: release n={CRIU_SUITE}
Pin-Priority: 50

Package: {" ".join(CRIU_PACKAGES)}
Pin: release n={CRIU_SUITE}
Pin-Priority: 990
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that an image follows from, but for the day on which it was made."""

    machine: str
    suite: str
    packages: tuple[str, ...]
    preferences: str
    unpacked_without: tuple[str, ...]
    requirements: tuple[str, ...]
    launcher: str
    builder: str  # the source of `phaul.lab.image`

    @property
    def key(self) -> str:
        """The name of the image's directory."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def current() -> Recipe:
    """The recipe of this checkout."""
    return Recipe(
        machine=platform.machine(),
        suite=SUITE,
        packages=PACKAGES,
        preferences=APT_PREFERENCES,
        unpacked_without=UNPACKED_WITHOUT,
        requirements=requirements(),
        launcher=LAUNCHER,
        builder=Path(__file__).with_name("image.py").read_text(),
    )


def source_directory() -> Path:
    """The package `phaul` that is running, which the hosts run too."""
    return Path(phaul.__file__).resolve().parent


def requirements() -> tuple[str, ...]:
    """What phaul needs of PyPI: from the checkout's pyproject.toml, or else from the installed package."""
    project = source_directory().parent / "pyproject.toml"
    if project.is_file():
        return tuple(tomllib.loads(project.read_text())["project"]["dependencies"])
    return tuple(line for line in importlib.metadata.requires("phaul") or () if "extra ==" not in line)
