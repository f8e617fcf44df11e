"""An epoll that still watches a number under which nothing is open any more: the pipe lives on under another."""
# answer: moves

import os
import select

from .life import live

reader, writer = os.pipe()
other = os.dup(reader)
watch = select.epoll()
watch.register(reader, select.EPOLLIN)
os.close(reader)
os.write(writer, b"x")
live(lambda: watch.poll(0))
