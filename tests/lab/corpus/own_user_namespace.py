"""Users of its own."""
# answer: refused own_namespaces

from .life import NEW_USERS, live, unshare

unshare(NEW_USERS)
live()
