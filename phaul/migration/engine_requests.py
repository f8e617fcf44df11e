"""What the engine is asked for, and what it gives: plain values beside the protocols of `interfaces`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from phaul.migration.guard import Guard
from phaul.migration.readdressing import STAYING, Readdressing


@dataclass(frozen=True, slots=True)
class DumpRequest:
    """A final dump, as the engine is asked for it."""

    migration_id: str
    root_pid: int
    images: Path  # an empty directory of our own, mode 0700, in memory
    page_channel_fd: int  # a connected TCP socket to the destination's page receiver; stays the caller's
    keep_connections: bool
    shell_job: bool
    drop_unaccepted: bool
    fenced: bool  # no packet reaches any of the workload's connections, so the engine need not lock them itself
    parent: Path | None = None  # the images of the newest round of pre-copy; None: all memory is sent
    new_addresses: tuple[tuple[str, str], ...] = ()  # (old, new)
    readdressing: Readdressing = STAYING  # of the copy's own network namespace
    new_macs: tuple[tuple[str, str], ...] = ()  # (device, MAC), of the copy; the tree itself keeps what it has
    host_name: str = ""  # of the copy; "" for that of the tree
    empty_network: bool = False  # leave out what the workload's own network namespace holds: it is carried otherwise
    close_connections: bool = False  # leave TCP connections alone; in the images they are closed ones


@dataclass(frozen=True, slots=True)
class PreDumpRequest:
    """A round of pre-copy, as the engine is asked for it."""

    migration_id: str
    root_pid: int
    images: Path  # a directory that is made for it, in memory, beside that of `parent`
    page_channel_fd: int
    parent: Path | None = None  # the images of the round before; None: all memory is sent


@dataclass(frozen=True, slots=True)
class PreDumped:
    """A finished pre-dump. `page_bytes` is the content of the pages that were sent."""

    page_bytes: int
    frozen_us: int


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """A restore, as the engine is asked for it."""

    migration_id: str
    images: Path  # holds every image of the dump, verified
    root_pid: int
    keep_connections: bool
    shell_job: bool
    close_connections: bool = False
    lazy: bool = False  # leave the pages to the loader that was made for this migration
    external: tuple[str, ...] = ()  # outer ends of the copy's own network namespace, as `own_network.external` has them
    # Awaited once the copy's namespaces are there, with its root's PID; what it raises ends the restore.
    setting_up: Callable[[int], Awaitable[None]] | None = None
    guard: Guard | None = None
    empty_network: bool = False  # as it was at the dump; `setting_up` fills the copy's namespace


@dataclass(frozen=True, slots=True)
class RestoredTree:
    """A restored copy held at the gate: complete, stopped, its packets fenced."""

    root_pid: int
    restore_us: int
