"""A TCP connection whose own port somebody listens at on the destination."""
# answer: moves
# there: python3 -c "import socket, time; s = socket.create_server(('', 5115)); time.sleep(1e5)"

import socket

from .life import live

listener = socket.create_server(("127.0.0.1", 5115))
near = socket.create_connection(("127.0.0.1", 5115))
far, _ = listener.accept()
listener.close()


def well() -> None:
    near.send(b"x")
    assert far.recv(9) == b"x"


live(well)
