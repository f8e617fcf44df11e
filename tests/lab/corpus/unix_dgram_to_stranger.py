"""A Unix socket that sends to one of a process that stays, as to the system's log."""
# answer: refused unix_socket_leaves_tree

import os
import socket

from .life import live, sleep_on, stranger

PATH = "/run/unix-dgram-to-stranger"


def serve() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(PATH)
        sleep_on()


stranger(serve)
while not os.path.exists(PATH):
    pass
logging = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
logging.connect(PATH)
live()
