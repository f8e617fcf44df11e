"""Which hosts were added from here, and how one logs in there: one small file. Used by `phaul host`."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phaul.errors import UsageError
from phaul.trust.store import write_private

FILE = "added-hosts.json"


@dataclass(frozen=True, slots=True)
class AddedHost:
    """A host. `target`: as it is typed for SSH. `version`: of phaul, when it was last brought there."""

    name: str
    target: str
    port: int
    also: tuple[str, ...] = ()
    version: str = ""


class Inventory:
    """The file in an agent's state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / FILE

    def hosts(self) -> dict[str, AddedHost]:
        """All, by name. Raises `UsageError` where the file was spoilt."""
        try:
            found: Mapping[str, dict[str, object]] = json.loads(self._file.read_text())
            return {
                name: AddedHost(
                    name=name,
                    target=str(each["target"]),
                    port=int(str(each["port"])),
                    also=tuple(map(str, each["also"] if isinstance(each["also"], list) else ())),
                    version=str(each["version"]),
                )
                for name, each in sorted(found.items())
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"the list of added hosts {self._file} cannot be read: {error}",
                hint="Move it away, and type `phaul host add` for each host again: that changes nothing there.",
            ) from error

    def find(self, name: str) -> AddedHost:
        """One of them, by its name or by what is typed to log in."""
        hosts = self.hosts()
        for host in hosts.values():
            if name in (host.name, host.target):
                return host
        raise UsageError(
            f"no host {name!r} was added from here", hint=f"Those that were: {', '.join(hosts) or 'none'}."
        )

    def put(self, host: AddedHost) -> None:
        """Add or replace."""
        with self._locked():
            self._write(self.hosts() | {host.name: host})

    def drop(self, name: str) -> None:
        """Forget."""
        with self._locked():
            self._write({other: host for other, host in self.hosts().items() if other != name})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Several hosts may be added at once."""
        self._file.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        descriptor = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, hosts: Mapping[str, AddedHost]) -> None:
        write_private(
            self._file, json.dumps({name: dataclasses.asdict(host) for name, host in hosts.items()}, indent=1)
        )
