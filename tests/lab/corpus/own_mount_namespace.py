"""Mounts of its own."""
# answer: refused own_namespaces

from .life import NEW_MOUNTS, live, unshare

unshare(NEW_MOUNTS)
live()
