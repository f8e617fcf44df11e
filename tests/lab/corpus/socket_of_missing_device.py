"""A socket that is bound to a network device which the destination does not have."""
# answer: refused socket_device_missing
# here: ip link add corpus-dev type bridge

import socket

from .life import live

bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"corpus-dev")
bound.bind(("", 5129))
live()
