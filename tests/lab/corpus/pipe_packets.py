"""A pipe that keeps what was written apart."""
# answer: refused packet_pipe

import os

from .life import live

reader, writer = os.pipe2(os.O_DIRECT)
os.write(writer, b"one")
os.write(writer, b"two")


def well() -> None:
    assert os.read(reader, 9) == b"one"
    assert os.read(reader, 9) == b"two"
    os.write(writer, b"one")
    os.write(writer, b"two")


live(well)
