"""A named pipe to a process that stays."""
# answer: refused pipe_leaves_tree
# both: mkfifo /run/corpus-fifo-to-stranger

import os

from .life import live, sleep_on, stranger


def read() -> None:
    os.open("/run/corpus-fifo-to-stranger", os.O_RDWR)
    sleep_on()


stranger(read)
number = os.open("/run/corpus-fifo-to-stranger", os.O_WRONLY)
live()
