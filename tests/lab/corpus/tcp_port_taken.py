"""A TCP listener whose port is taken on the destination."""
# answer: refused port_taken
# there: python3 -c "import socket, time; s = socket.create_server(('', 5111)); time.sleep(1e5)"

import socket

from .life import live

listener = socket.create_server(("0.0.0.0", 5111))
live()
