"""A host name of its own."""
# answer: moves

import socket

from .life import NEW_UTS, live, unshare

unshare(NEW_UTS)
socket.sethostname("corpus")


def well() -> None:
    assert socket.gethostname() == "corpus"


live(well)
