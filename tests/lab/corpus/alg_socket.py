"""A socket to the kernel's ciphers."""
# answer: refused socket_kind

import socket

from .life import live, missing

try:
    ciphers = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
except OSError:
    missing("this kernel has no ciphers for programs (CONFIG_CRYPTO_USER_API)")
live()
