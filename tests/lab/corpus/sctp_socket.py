"""An SCTP socket."""
# answer: refused socket_kind

import socket

from .life import live, missing

try:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
except OSError:
    missing("this kernel has no SCTP (CONFIG_IP_SCTP)")
live()
