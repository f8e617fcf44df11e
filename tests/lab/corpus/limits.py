"""Limits of its own."""
# answer: moves

import resource

from .life import live

resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def well() -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, 300)


live(well)
