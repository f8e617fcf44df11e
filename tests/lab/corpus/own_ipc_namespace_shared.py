"""System V objects of its own, with somebody who stays."""
# answer: refused ipc_namespace_shared

from .life import NEW_IPC, live, stranger, unshare

unshare(NEW_IPC)
stranger()
live()
