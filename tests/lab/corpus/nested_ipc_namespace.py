"""A child with System V objects of its own."""
# answer: refused own_namespaces

from .life import NEW_IPC, child, live, sleep_on, unshare


def apart() -> None:
    unshare(NEW_IPC)
    sleep_on()


child(apart)
live()
