"""Past COMMIT: the destination is told to run the copy, until it has answered: nobody else may run it any more."""

from __future__ import annotations

from collections.abc import Callable

from phaul.errors import InDoubtError, LostError, PhaulError, UnreachableError
from phaul.migration.interfaces import Clock
from phaul.migration.peer import PeerAgent, Resumed

BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # the last one again and again


async def resume(peer: PeerAgent, migration_id: str, clock: Clock, warn: Callable[[str], None]) -> Resumed:
    """Ask until there is an answer.

    Raises `LostError` where it says that it cannot, with the images kept over there.
    """
    attempt = 0
    while True:
        try:
            return await peer.resume(migration_id)
        except UnreachableError as error:
            delay_seconds = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            if attempt == 0:
                warn(f"the destination does not answer ({error.message}); it is asked again until it does")
            attempt += 1
            await clock.sleep(delay_seconds)
        except PhaulError as error:
            if isinstance(error, LostError | InDoubtError):
                raise
            raise LostError(
                f"the destination could not run the workload: {error.message}",
                hint=f"Its images are kept on {peer.name}. {error.hint}",
                detail=error.detail,
            ) from error
