"""PIDs of their own for children that it does not have yet."""
# answer: refused own_namespaces

from .life import NEW_PIDS, live, unshare

unshare(NEW_PIDS)
live()
