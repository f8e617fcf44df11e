"""A descriptor of a namespace that nobody lives in."""
# answer: refused descriptor_kind

import os
import time

from .life import NEW_NETWORK, child, live, sleep_on, unshare


def away() -> None:
    unshare(NEW_NETWORK)
    sleep_on()


pid = child(away)
while os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:
    time.sleep(0.01)
number = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
os.kill(pid, 9)
os.waitpid(pid, 0)
live()
