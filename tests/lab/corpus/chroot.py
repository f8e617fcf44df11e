"""A root directory of its own."""
# answer: moves
# both: mkdir -p /srv/chroot/tmp

import os

from .life import live

number = os.open("/etc/hostname", os.O_RDONLY)
os.chroot("/srv/chroot")
os.chdir("/tmp")


def well() -> None:
    assert os.listdir("/") == ["tmp"]


live(well)
