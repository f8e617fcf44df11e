"""A Unix socket that was only found (O_PATH)."""
# answer: refused descriptor_kind
# both: python3 -c "import socket; s = socket.socket(1); s.bind('/run/path-of-socket')"

import os

from .life import live

number = os.open("/run/path-of-socket", os.O_PATH)
live()
