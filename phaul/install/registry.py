"""The packages that phaul needs, for a Python that is not this host's: pip fetches them from where it is configured to.

Used by `install.host_setup` and `install.debian`. Only wheels, so that nothing is built; into a directory of the
caller's. Never touches what is installed here.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from phaul.errors import InstallError
from phaul.install import bundle
from phaul.install.bundle import MINIMUM_GLIBC, Bundle, Platform
from phaul.system.process import CommandError, run

FETCH_SECONDS = 600.0


def bundle_for(wanted: Platform, scratch: Path) -> Bundle:
    """
    Give the bundle for a host: of what is installed here where that fits, else fetched into the directory `scratch`.

    Raises `InstallError` where pip cannot be had, or finds no wheel. Blocks; not for a thread that runs an event loop.
    """
    ours = Platform.of_this_host()
    if (wanted.python, wanted.machine) == (ours.python, ours.machine):
        return bundle.installed_here()
    own = dict(bundle.own_files())
    asyncio.run(_fetch(wanted, scratch))
    fetched = {
        str(file.relative_to(scratch)): file
        for file in scratch.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.relative_to(scratch).parts[0] != "bin"
    }
    return Bundle(wanted, fetched | own, bundle.metadata())


def tags(wanted: Platform) -> list[str]:
    """The platform tags of wheels that run there, newest first (PEP 600)."""
    first, last = wanted.glibc[1], 17
    names = [f"manylinux_2_{minor}_{wanted.machine}" for minor in range(first, last - 1, -1)]
    return [*names, f"manylinux2014_{wanted.machine}"]


async def _fetch(wanted: Platform, scratch: Path) -> None:
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    argv += ["--root-user-action", "ignore", "--target", str(scratch), "--only-binary", ":all:"]
    argv += ["--implementation", "cp", "--python-version", "{}.{}".format(*wanted.python)]
    argv += [word for tag in tags(wanted) for word in ("--platform", tag)]
    try:
        await run([*argv, *bundle.requirements()], timeout_seconds=FETCH_SECONDS)
    except CommandError as error:
        minimum = "{}.{}".format(*MINIMUM_GLIBC)
        raise InstallError(
            f"the packages that phaul needs could not be fetched for {wanted}",
            hint="pip must be installed here and reach a package index. Without one: install from a host that has the "
            f"same Python as that one ({wanted}, glibc {minimum} or newer), where nothing has to be fetched.",
            detail=error.detail or error.message,
        ) from error
