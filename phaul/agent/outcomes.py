"""What earlier migrations cost between this host and each other: `OutcomeStore` as one small JSON file a peer.

Made by `agent.wiring`. Losing it costs nothing but the precision of the next prediction, so nothing here ever fails.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import structlog

from phaul.migration.journal import Data

log = structlog.get_logger(__name__)


class OutcomeFiles:
    """Files below one directory, made when needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def of(self, peer: str) -> Sequence[Data]:
        """What was kept; nothing where the file is missing or damaged."""
        try:
            content = json.loads(await asyncio.to_thread(self._path(peer).read_text))
            return [each for each in content if isinstance(each, dict)] if isinstance(content, list) else ()
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as error:
            log.warning("outcomes.unreadable", peer=peer, reason=str(error))
            return ()

    async def keep(self, peer: str, outcomes: Sequence[Data]) -> None:
        """Write it whole, in place of the file before."""
        try:
            await asyncio.to_thread(self._write, self._path(peer), json.dumps([dict(each) for each in outcomes]))
        except OSError as error:
            log.warning("outcomes.unwritable", peer=peer, reason=str(error))

    def _path(self, peer: str) -> Path:
        return self._directory / f"{quote(peer, safe='')}.json"

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)
