"""The hosts' image with more programs in it: for tests of what phaul does beside other people's servers.

Called by tests, which skip what needs it where it has not been made (`make examples` makes it). The usual image stays
small, and as it is.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from phaul.lab import building, image, recipe

# A load balancer, VRRP, and a name server that takes updates, with their own tools; a database; an SSH server, which
# would bring all of systemd.
PACKAGES = (
    *("haproxy", "keepalived", "bind9", "bind9-dnsutils"),
    *("postgresql", "openssh-server", "systemd-standalone-sysusers"),
)

# CRIU's libnl-3-200 is of another suite, and these go with it in lock-step.
BESIDE_CRIU = ("libnl-genl-3-200", "libnl-nf-3-200", "libnl-route-3-200")


def current() -> recipe.Recipe:
    """The recipe of this checkout."""
    usual = recipe.current()
    pin = f"Package: {' '.join(BESIDE_CRIU)}\nPin: release n={recipe.CRIU_SUITE}\nPin-Priority: 990\n"
    preferences = f"{usual.preferences}\n{pin}"
    return dataclasses.replace(usual, packages=(*usual.packages, *PACKAGES), preferences=preferences)


def find() -> Path | None:
    """The image of the current recipe, None when it has not been made."""
    directory = image.cache_directory() / current().key
    return directory if directory.is_dir() else None


def ensure(progress: building.Progress = lambda line: None) -> Path:
    """Give the image, and make it when there is none."""
    wanted = current()
    cache = image.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with building.locked(cache, progress):
        final = cache / wanted.key
        if not final.is_dir():
            # Not a public function: were that module changed for our sake, the usual image would be made anew.
            image._build(wanted, cache, final, progress)
        return final


if __name__ == "__main__":
    sys.stdout.write(f"{ensure(print)}\n")
