"""A socket to the hypervisor."""
# answer: refused socket_kind

import socket

from .life import live

listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
listener.bind((socket.VMADDR_CID_ANY, 5000))
listener.listen()
live()
