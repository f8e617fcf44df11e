"""A program that was started from a memfd, so that it has no path."""
# answer: refused deleted_file_too_big

import os
import sys

from .life import live

if not os.readlink("/proc/self/exe").startswith("/memfd:"):
    number = os.memfd_create("program", 0)
    with open(sys.executable, "rb") as program:
        os.write(number, program.read())
    os.execve(number, ["python3", "-m", "corpus.memfd_program"], os.environ)
live()
