"""A netlink socket with an answer that was not read."""
# answer: refused unread_messages

import socket
import struct

from .life import live

asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
asking.bind((0, 0))
asking.send(struct.pack("IHHIIB3x", 20, 18, 0x301, 1, 0, 0))  # RTM_GETLINK, dump
live()
