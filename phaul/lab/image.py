"""The root file system of the lab's hosts: a Debian with CRIU and phaul's dependencies, made once and kept.

Called by `phaul.lab.cluster` and `phaul lab build`. An image is made in a draft directory and renamed, so that one with
a name is whole; a lock lets one builder work at a time. phaul's own source is not in it. Never changes an image.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phaul.errors import LabError
from phaul.lab import building, commands, recipe, records, registries

CACHE_VARIABLE = "PHAUL_LAB_CACHE"
DEFAULT_CACHE = Path("/var/cache/phaul/lab")
_DRAFT_PREFIX = "draft-"

# Run in a mount namespace of its own: ROOT, then the paths to show in it, "--" and the command.
_CHROOT_SCRIPT = """set -e
root=$1; shift
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do mount --rbind "$1" "$root$1"; shift; done
shift
exec chroot "$root" "$@"
"""


def cache_directory() -> Path:
    """Where images are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)


def find() -> Path | None:
    """The image of the current recipe, None when it has not been made."""
    directory = cache_directory() / recipe.current().key
    return directory if directory.is_dir() else None


def ensure(progress: building.Progress = lambda line: None) -> Path:
    """
    Give the image of the current recipe, and make it when there is none.

    Args:
        progress: told one line per step, only while something is being made.

    Returns:
        A directory with `root`, the file system, and `pycache`, where the hosts keep compiled modules.
    """
    found = find()
    if found:
        return found
    cache = cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            f"The image cannot be kept in {cache}: {error.strerror}.",
            hint=f"Name another directory in the variable {CACHE_VARIABLE}.",
        ) from error
    with building.locked(cache, progress):
        current = recipe.current()
        final = cache / current.key
        if not final.is_dir():
            _remove_old(cache, keep=current.key)
            _build(current, cache, final, progress)
    return final


def _remove_old(cache: Path, keep: str) -> None:
    """Delete drafts that a killed builder left and images of other recipes that no lab uses."""
    used = {path.resolve() for path in records.images_in_use()}
    for entry in cache.iterdir():
        if entry.is_dir() and entry.name != keep and entry.resolve() not in used:
            shutil.rmtree(entry, ignore_errors=True)


def _build(current: recipe.Recipe, cache: Path, final: Path, progress: building.Progress) -> None:
    started = time.monotonic()
    draft = cache / f"{_DRAFT_PREFIX}{os.getpid()}"
    draft.mkdir()
    log = cache / "build.log"
    log.unlink(missing_ok=True)
    root = draft / "root"
    try:
        progress(f"Making the hosts' Debian {current.suite} with CRIU from {recipe.CRIU_SUITE}")
        _install_debian(current, draft, root, log)
        progress(f"Installing the {len(current.requirements)} packages that phaul needs from PyPI")
        _install_python_packages(current, draft, root, log)
        _finish(current, draft, root)
        draft.replace(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    progress(f"The image is ready in {final} ({time.monotonic() - started:.0f} s)")


def _install_debian(current: recipe.Recipe, draft: Path, root: Path, log: Path) -> None:
    preferences = draft / "preferences"
    preferences.write_text(current.preferences)
    argv = [
        commands.find("mmdebstrap"),
        "--variant=minbase",
        "--mode=root",
        "--format=directory",
        *(f"--aptopt={option}" for option in building.debian_options()),
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in current.unpacked_without),
        f'--setup-hook=mkdir -p "$1/etc/apt/preferences.d" && cp "{preferences}" "$1/etc/apt/preferences.d/criu"',
        f"--include={','.join(current.packages)}",
        current.suite,
        str(root),
        building.debian_source(current.suite),
        # sid is not released on a schedule: its Release file may be past its date on a mirror that stands still.
        building.debian_source(recipe.CRIU_SUITE, options="check-valid-until=no"),
    ]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    building.run_logged(argv, log, environment, "The hosts' Debian could not be made")


def _install_python_packages(current: recipe.Recipe, draft: Path, root: Path, log: Path) -> None:
    configuration = draft / "pip.conf"
    configuration.write_text(registries.pip_configuration())
    shutil.copy(configuration, root / "etc/pip.conf")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
    environment |= registries.pip_environment()
    paths = registries.pip_paths(configuration.read_text())
    failed = "phaul's Python packages could not be installed into the image"
    try:
        with _mount_points(root, paths):
            for argv in (
                ["python3", "-m", "venv", recipe.VENV],
                # Modules are compiled where the hosts keep them, when one needs them.
                [f"{recipe.VENV}/bin/pip", "install", "--no-compile", "--no-cache-dir", *current.requirements],
            ):
                building.run_logged(_in_chroot(root, paths, argv), log, environment, failed)
    finally:
        (root / "etc/pip.conf").unlink(missing_ok=True)


def _finish(current: recipe.Recipe, draft: Path, root: Path) -> None:
    launcher = root / "usr/local/bin/phaul"
    launcher.write_text(current.launcher)
    launcher.chmod(0o755)
    (packages,) = root.glob(f"{recipe.VENV.lstrip('/')}/lib/python3.*/site-packages")
    (packages / "phaul.pth").write_text(f"{recipe.SOURCE}\n")
    for directory in (f"{recipe.SOURCE}/phaul", recipe.PYTHON_CACHE):
        (root / directory.lstrip("/")).mkdir(parents=True)
    # The hosts have no name service: nothing may wait for one.
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").touch()
    (draft / "pycache").mkdir()
    (draft / "pip.conf").unlink()
    (draft / "preferences").unlink()


def _in_chroot(root: Path, paths: list[Path], argv: list[str]) -> list[str]:
    script = ["/bin/sh", "-c", _CHROOT_SCRIPT, "sh", str(root), *map(str, paths), "--", *argv]
    return building.in_new_mounts(script)


@contextmanager
def _mount_points(root: Path, paths: list[Path]) -> Iterator[None]:
    """Make what is missing in `root` for `paths` to be mounted on, and remove just that again."""
    made: list[Path] = []
    try:
        for path in paths:
            target = root / str(path).lstrip("/")
            missing = [parent for parent in target.parents if parent.is_relative_to(root) and not parent.exists()]
            for parent in reversed(missing):
                parent.mkdir()
                made.append(parent)
            if not target.exists():
                if path.is_dir():
                    target.mkdir()
                else:
                    target.touch()
                made.append(target)
        yield
    finally:
        for path in reversed(made):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
