"""A UDP port that is taken on the destination."""
# answer: refused port_taken
# there: python3 -c "import socket, time; s = socket.socket(2, 2); s.bind(('', 5114)); time.sleep(1e5)"

import socket

from .life import live

bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
bound.bind(("0.0.0.0", 5114))
live()
