"""A netlink socket that hears of devices, as udev has it."""
# answer: moves

import socket

from .life import live

asking = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)
asking.bind((0, 1))
live()
