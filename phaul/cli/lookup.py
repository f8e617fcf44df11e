"""Finding a migration by what was typed. Used by `status`, `watch` and `cancel`."""

from __future__ import annotations

from collections.abc import Sequence

from phaul.errors import NoSuchMigrationError, UsageError
from phaul.rpc.v1.agent_pb2 import MigrationSummary


def find_migration(migrations: Sequence[MigrationSummary], typed: str) -> MigrationSummary:
    """Give the migration with this ID, or the only one whose ID begins so."""
    matching = [each for each in migrations if each.migration_id == typed] or [
        each for each in migrations if typed and each.migration_id.startswith(typed)
    ]
    if not matching:
        raise NoSuchMigrationError(f"there is no migration {typed!r} on this host")
    if len(matching) > 1:
        raise UsageError(
            f"{len(matching)} migrations begin with {typed!r}",
            hint="Type more of the ID; `phaul status` lists them.",
        )
    return matching[0]
