"""PIDs of its own for a child."""
# answer: refused own_namespaces

from .life import NEW_PIDS, child, live, unshare

unshare(NEW_PIDS)
child()
live()
