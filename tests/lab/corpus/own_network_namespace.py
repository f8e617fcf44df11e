"""A network of its own."""
# answer: refused own_network_namespace

from .life import NEW_NETWORK, live, unshare

unshare(NEW_NETWORK)
live()
