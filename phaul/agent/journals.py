"""The journals of this host's migrations, one beside each `summary.json`. Made by `agent.server`.

Turns the lines of `system.journal_files` into the records that `migration` reads, and remembers the journals of the
migrations of this agent's life. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from phaul.migration.journal import Data, Mark, Record, ended
from phaul.system.journal_files import JournalFile

NAME = "journal"


class MigrationJournal:
    """Implements `migration.journal.Journal` on a file. Closes the file with the record that ends it."""

    def __init__(self, path: Path) -> None:
        self._file = JournalFile(path)
        self._records = [Record(Mark(mark), data) for mark, data in self._file.lines]

    @property
    def records(self) -> Sequence[Record]:
        """What was written, also before this agent."""
        return self._records

    async def write(self, mark: Mark, data: Data | None = None) -> None:
        """Append a record, durably."""
        await self._file.append(str(mark), dict(data or {}))
        self._records.append(Record(mark, dict(data or {})))
        if mark is Mark.ENDED:
            self._file.close()

    def close(self) -> None:
        """Give the file back; the next record opens it again."""
        self._file.close()


class Journals:
    """All of them, by migration."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[str, MigrationJournal] = {}

    def of(self, migration_id: str) -> MigrationJournal:
        """Give the journal of a migration; one that has none yet begins with its first record."""
        if migration_id not in self._open:
            self._open[migration_id] = MigrationJournal(self._directory / migration_id / NAME)
        return self._open[migration_id]

    def find(self, migration_id: str) -> MigrationJournal | None:
        """Give the journal of a migration that has one."""
        known = (self._directory / migration_id / NAME).is_file() if migration_id.isalnum() else False
        return self.of(migration_id) if known else None

    def forget(self, migration_id: str) -> None:
        """Keep no object of a migration that has ended; its file stays."""
        journal = self._open.pop(migration_id, None)
        if journal is not None:
            journal.close()

    def known(self) -> tuple[str, ...]:
        """Every migration that has a journal here, whatever became of it."""
        return tuple(sorted(path.parent.name for path in self._directory.glob(f"*/{NAME}")))

    def look(self, migration_id: str) -> Sequence[Record]:
        """Give the records of a journal, without keeping it; none where there is no such journal."""
        if migration_id in self._open:
            return self._open[migration_id].records
        path = self._directory / migration_id / NAME
        return MigrationJournal(path).records if migration_id.isalnum() and path.is_file() else ()

    def unfinished(self) -> Iterator[tuple[str, MigrationJournal]]:
        """Give every migration that an agent before this one left in the middle."""
        for path in sorted(self._directory.glob(f"*/{NAME}")):
            journal = MigrationJournal(path)
            if journal.records and not ended(journal.records):
                self._open[path.parent.name] = journal
                yield path.parent.name, journal
