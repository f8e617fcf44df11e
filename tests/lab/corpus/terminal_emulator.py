"""A terminal with a child that it controls, as tmux and script have it."""
# answer: moves

import pty

from .life import live, sleep_on

pid, master = pty.fork()
if pid == 0:
    sleep_on()
live()
