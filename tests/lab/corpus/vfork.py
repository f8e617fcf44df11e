"""A child that waits for a child of its own which has not become another program yet."""
# answer: refused uninterruptible

import os
import time

from .life import child, live

os.mkfifo("/tmp/corpus-vfork")
actions = [(os.POSIX_SPAWN_OPEN, 0, "/tmp/corpus-vfork", os.O_RDONLY, 0)]
child(lambda: os.posix_spawn("/bin/true", ["true"], os.environ, file_actions=actions))
time.sleep(0.1)
live()
