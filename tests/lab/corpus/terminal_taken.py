"""Both ends of a terminal whose number is in use on the destination."""
# answer: refused terminal_taken
# there: python3 -c "import os, time; [os.openpty() for _ in range(4)]; time.sleep(1e5)"

import os

from .life import live

master, slave = os.openpty()
live()
