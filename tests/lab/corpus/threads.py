"""Many threads."""
# answer: moves

import threading

from .life import live, sleep_on

for _ in range(50):
    threading.Thread(target=sleep_on).start()


def well() -> None:
    assert threading.active_count() == 51


live(well)
