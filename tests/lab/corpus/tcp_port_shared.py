"""A TCP listener that lets others have its port, which somebody else has on the destination."""
# answer: refused port_taken
# there: python3 -c "import socket, time; s = socket.create_server(('', 5113), reuse_port=True); time.sleep(1e5)"

import socket

from .life import live

listener = socket.create_server(("0.0.0.0", 5113), reuse_port=True)
live()
