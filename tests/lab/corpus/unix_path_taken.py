"""A Unix listener whose path another server has on the destination."""
# answer: refused unix_name_taken
# there: python3 -c "import socket, time; s = socket.socket(1); s.bind('/run/unix-path-taken'); time.sleep(1e5)"

import socket

from .life import live

listener = socket.socket(socket.AF_UNIX)
listener.bind("/run/unix-path-taken")
listener.listen()
live()
