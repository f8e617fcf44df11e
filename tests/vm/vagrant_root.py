"""A Debian with Vagrant in it, for `vagrant validate` on a machine that has none: made once, and kept beside the image.

Used by `test_vagrant`. Vagrant itself needs no virtual machine, and no network, to say whether a Vagrantfile is right.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from phaul.lab import building, commands, image, recipe

SUITE = "bookworm"  # the last release with Vagrant
PACKAGES = ("vagrant", "openssh-client")
PREFIX = "vagrant-"

# ROOT, the directory of the Vagrantfile, and the command. What is written, is written to memory, and nothing is called.
_VALIDATE = """set -eu
root=$1 source=$2; shift 2
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/srv"
cp "$source"/Vagrantfile "$source"/*.sh "$root/srv/"
exec chroot "$root" /usr/bin/env -i HOME=/srv LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    VAGRANT_CHECKPOINT_DISABLE=1 /bin/sh -euc 'cd /srv; exec "$@"' sh "$@"
"""


def find() -> Path | None:
    """The root file system, None when it has not been made."""
    root = _directory()
    return root if root.is_dir() else None


def ensure() -> Path:
    """Give it, and make it when there is none. Raises `LabError`."""
    final = _directory()
    cache = image.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with building.locked(cache, lambda line: None):
        if not final.is_dir():
            draft = cache / f"{PREFIX}draft-{os.getpid()}"
            try:
                building.run_logged(
                    [
                        commands.find("mmdebstrap"),
                        "--variant=minbase",
                        "--mode=root",
                        "--format=directory",
                        *(f"--aptopt={option}" for option in building.debian_options()),
                        "--dpkgopt=force-unsafe-io",
                        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.UNPACKED_WITHOUT),
                        f"--include={','.join(PACKAGES)}",
                        SUITE,
                        str(draft),
                        building.debian_source(SUITE),
                    ],
                    cache / "build-vagrant.log",
                    os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                    "A Debian with Vagrant could not be made",
                )
                draft.replace(final)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return final


def inside(root: Path, source: Path, *argv: str) -> list[str]:
    """The command line that runs a command in it beside a copy of the Vagrantfile of `source`, without a network."""
    alone = [commands.find("unshare"), "--net", "--"]
    return [*alone, *building.in_new_mounts(["/bin/sh", "-c", _VALIDATE, "sh", str(root), str(source), *argv])]


def _directory() -> Path:
    content = repr((SUITE, PACKAGES, recipe.UNPACKED_WITHOUT))
    return image.cache_directory() / f"{PREFIX}{hashlib.sha256(content.encode()).hexdigest()[:16]}"
