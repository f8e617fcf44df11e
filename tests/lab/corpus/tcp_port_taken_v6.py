"""A listener of IPv6 and IPv4 whose port is taken for IPv4 on the destination."""
# answer: refused port_taken
# there: python3 -c "import socket, time; s = socket.create_server(('', 5112)); time.sleep(1e5)"

import socket

from .life import live

listener = socket.create_server(("::", 5112), family=socket.AF_INET6, dualstack_ipv6=True)
live()
