"""A Unix connection to a process that stays."""
# answer: refused unix_socket_leaves_tree

import socket

from .life import live, stranger

near, far = socket.socketpair()
stranger()
far.close()
live()
