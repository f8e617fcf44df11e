"""The Debian package of phaul: a virtual environment in /usr/lib/phaul with all that it needs of PyPI, and the units.

`make deb` runs it: `python -m phaul.install.debian [--python 3.13] [--out dist]`. A package is for one version of
Python, that of a Debian release; Debian's own packages of grpcio and others are too old. It changes nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import platform
import sys
import tarfile
import tempfile
from pathlib import Path

import phaul
from phaul.errors import InstallError
from phaul.install import registry
from phaul.install.bundle import MINIMUM_GLIBC, MINIMUM_PYTHON, Bundle, Platform
from phaul.install.host_setup import SETTINGS, unit_files
from phaul.observe.logs import configure_logs
from phaul.system.process import run

HOME = "/usr/lib/phaul"
BUILD_SECONDS = 300.0
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_PLACES = {"/etc/systemd/system": "usr/lib/systemd/system", "/etc/tmpfiles.d": "usr/lib/tmpfiles.d"}

# criu is only recommended: not every release has one that is new enough, and `phaul doctor` says what is missing.
_CONTROL = """Package: phaul
Version: {version}
Architecture: {architecture}
Maintainer: The phaul authors <phaul@localhost>
Section: admin
Priority: optional
Installed-Size: {kib}
Depends: python3 (>= {python}), python3 (<< {next_python}), libc6 (>= {glibc}), iproute2, nftables
Recommends: criu
Description: moves running Linux processes to another host
 phaul moves a running process tree to another host, with its memory, its open
 files and its TCP connections. CRIU freezes, dumps and restores; phaul does
 everything around it, and sees to it that one copy runs on, whatever fails.
"""
# Not started: an agent listens for other hosts once it has certificates, which `phaul trust` or `phaul host` give it.
_POSTINST = f"""#!/bin/sh
set -e
if ! ls {HOME}/lib/*/site-packages/phaul/__pycache__ >/dev/null 2>&1; then
    python3 -m compileall -q {HOME}/lib || true
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemd-tmpfiles --create phaul.conf
    if [ -n "$2" ]; then systemctl try-restart phaul-agent.service; fi
fi
"""
_PRERM = f"""#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now phaul-agent.service
    systemctl stop phaul-workloads.service
fi
find {HOME} -name __pycache__ -type d -prune -exec rm -rf {{}} +
"""
# The settings are no file of the package: `phaul host add` writes them, or a person.
_POSTRM = f"""#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ "$1" = purge ]; then
    rm -rf /var/lib/phaul
    rm -f {SETTINGS}
    rmdir /etc/phaul 2>/dev/null || true
fi
"""


def build(wanted: Platform, out: Path) -> Path:
    """Make the package for a Python; gives its file. Raises `InstallError` where something for it cannot be had."""
    architecture = ARCHITECTURES.get(wanted.machine)
    if architecture is None:
        raise InstallError(f"there is no Debian architecture for {wanted.machine} here")
    version = "{}+py{}.{}".format(phaul.__version__, *wanted.python)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"phaul_{version}_{architecture}.deb"
    with tempfile.TemporaryDirectory(prefix="phaul-deb-") as scratch:
        fetched = Path(scratch) / "fetched"
        fetched.mkdir()
        tree = Path(scratch) / "tree"
        bundle = registry.bundle_for(wanted, fetched)
        _lay_out(tree, bundle)
        files = [file for file in tree.rglob("*") if file.is_file() and not file.is_symlink()]
        control = _CONTROL.format(
            version=version,
            architecture=architecture,
            kib=sum(file.stat().st_size for file in files) // 1024,
            python="{}.{}".format(*wanted.python),
            next_python=f"{wanted.python[0]}.{wanted.python[1] + 1}",
            glibc="{}.{}".format(*MINIMUM_GLIBC),
        )
        scripts = {"postinst": _POSTINST, "prerm": _PRERM, "postrm": _POSTRM}
        _write(tree / "DEBIAN/control", control)
        for name, script in scripts.items():
            _write(tree / "DEBIAN" / name, script, 0o755)
        argv = ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(tree), str(target)]
        asyncio.run(run(argv, timeout_seconds=BUILD_SECONDS))
    return target


def _lay_out(tree: Path, bundle: Bundle) -> None:
    """Everything that the package puts on a host, below `tree`."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        bundle.write(tar, HOME, "/usr/bin/python3")
    archive.seek(0)
    tree.mkdir()
    with tarfile.open(fileobj=archive) as tar:
        tar.extractall(tree, filter="fully_trusted")  # ours; the links lead out of it, as they shall
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/phaul").symlink_to(f"..{HOME.removeprefix('/usr')}/bin/phaul")
    for path, text in unit_files().items():
        place = _PLACES[str(Path(path).parent)]
        _write(tree / place / Path(path).name, text)
    _write(tree / "usr/share/doc/phaul/copyright", "phaul: Apache-2.0, /usr/share/common-licenses/Apache-2.0\n")
    for folder in (tree, *(each for each in tree.rglob("*") if each.is_dir() and not each.is_symlink())):
        folder.chmod(0o755)


def _write(file: Path, text: str, mode: int = 0o644) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def main() -> None:
    """What `make deb` calls."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    own = "{}.{}".format(*sys.version_info[:2])
    parser.add_argument("--python", action="append", help=f"for which Python: 3.11 (Debian 12), 3.13 (13); {own}")
    parser.add_argument("--out", type=Path, default=Path("dist"))
    typed = parser.parse_args()
    configure_logs("warning", "console")
    for python in typed.python or [own]:
        major, _, minor = python.partition(".")
        if not minor.isdigit() or (int(major), int(minor)) < MINIMUM_PYTHON:
            parser.error(f"{python} is no version of Python that phaul runs on")
        # Every release with such a Python has this glibc, or a newer one.
        wanted = Platform((int(major), int(minor)), platform.machine(), max(MINIMUM_GLIBC, (2, 36)))
        try:
            sys.stdout.write(f"{build(wanted, typed.out)}\n")
        except InstallError as error:
            sys.exit(f"{error.message}\n{error.hint}\n{error.detail}")


if __name__ == "__main__":
    main()
