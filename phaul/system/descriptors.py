"""How many files this process may open. Called by `agent.server` at its start."""

from __future__ import annotations

import resource

WANTED = 65_536  # two for each connection, and one for each image of a migration that comes in


def allow_many() -> int:
    """Raise the soft limit as far as it helps and the hard one allows; give it. What CRIU restores has its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < WANTED:
        soft = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
