"""An epoll that watches another one, which watches a pipe."""
# answer: moves

import os
import select

from .life import live

reader, writer = os.pipe()
inner, outer = select.epoll(), select.epoll()
inner.register(reader, select.EPOLLIN)
outer.register(inner, select.EPOLLIN)
os.write(writer, b"x")


def well() -> None:
    assert outer.poll(1) == [(inner.fileno(), select.EPOLLIN)]


live(well)
