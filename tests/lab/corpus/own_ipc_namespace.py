"""System V objects and message queues of its own."""
# answer: refused own_namespaces

from .life import NEW_IPC, live, unshare

unshare(NEW_IPC)
live()
