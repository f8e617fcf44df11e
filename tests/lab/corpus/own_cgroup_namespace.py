"""A view of its own of the control groups."""
# answer: moves

from .life import NEW_CGROUPS, live, unshare

unshare(NEW_CGROUPS)
live()
