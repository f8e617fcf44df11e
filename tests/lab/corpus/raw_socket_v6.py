"""A raw socket of IPv6."""
# answer: moves

import socket

from .life import live

raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
live()
