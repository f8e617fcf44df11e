"""A Unix listener with an abstract name that is taken on the destination."""
# answer: refused unix_name_taken
# there: python3 -c "import socket, time; s = socket.socket(1); s.bind('\0corpus-taken'); time.sleep(1e5)"

import socket

from .life import live

listener = socket.socket(socket.AF_UNIX)
listener.bind("\0corpus-taken")
listener.listen()
live()
