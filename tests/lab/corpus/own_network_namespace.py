"""A network of its own."""
# answer: moves

from .life import NEW_NETWORK, live, unshare

unshare(NEW_NETWORK)
live()
