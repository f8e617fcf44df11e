"""A Unix listener that a process which stays has connected to, and that nobody accepted yet."""
# answer: refused unaccepted_unix_connections

import os
import socket

from .life import live, sleep_on, stranger

PATH = "/run/unix-of-stranger"
listener = socket.socket(socket.AF_UNIX)
listener.bind(PATH)
listener.listen()


def connect() -> None:
    listener.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(PATH)
        os.mkdir(PATH + ".done")
        sleep_on()


stranger(connect)
while not os.path.exists(PATH + ".done"):
    pass
live()
