"""phaul's own code for a virtual machine of the lab, as a tar archive: the checkout's, with its modules compiled.

Called by `phaul.lab.cluster`. Compiling is done here, by the Python of the image that the machines have too: under
emulation it would take many times as long. What is compiled already is kept with the image.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from phaul.lab import building, commands, recipe

DIRECTORY = recipe.SOURCE
COMPILE_SECONDS = 120.0

# Arguments: the image, the package, where both are inside. The image is shown the package as a namespace host is.
_COMPILE = """set -e
mount --bind "$2" "$1/root$3/phaul"
mount -o remount,bind,ro "$1/root$3/phaul"
mount --bind "$1/pycache" "$1/root$4"
# A module that is no Python is for whoever imports it to complain of.
chroot "$1/root" /usr/bin/python3 -Xpycache_prefix="$4" -m compileall -q "$3/phaul" || true
"""

# Run in the machine, which has no moment without a package.
INSTALL = f"""set -e
cd {DIRECTORY}
rm -rf new old
mkdir new
tar -xf - -C new
if [ -e phaul ]; then mv phaul old; fi
mv new/phaul phaul
rm -rf new old
"""


def archive(image: Path) -> bytes:
    """
    Give the package `phaul` as the hosts shall have it, to be unpacked in `DIRECTORY`.

    Args:
        image: the directory of the hosts' image (`phaul.lab.image`).
    """
    package = recipe.source_directory()
    script = ["/bin/sh", "-c", _COMPILE, "compile", str(image), str(package), recipe.SOURCE, recipe.PYTHON_CACHE]
    commands.run(building.in_new_mounts(script), timeout_seconds=COMPILE_SECONDS)
    compiled = image / "pycache" / recipe.SOURCE.lstrip("/") / "phaul"
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for file in sorted(package.rglob("*")):
            inside = Path("phaul") / file.relative_to(package)
            if not file.is_file() or "__pycache__" in inside.parts:
                continue
            tar.add(file, str(inside), filter=_as_root)
            for module in (compiled / file.relative_to(package)).parent.glob(f"{file.stem}.cpython-*.pyc"):
                if file.suffix == ".py":
                    tar.add(module, str(inside.parent / "__pycache__" / module.name), filter=_as_root)
    return made.getvalue()


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
