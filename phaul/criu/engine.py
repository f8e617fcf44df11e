"""`migration.interfaces.Engine` on CRIU. Made by `agent.wiring`; one for the life of an agent.

Turns a dump or restore request into CRIU's options and hands out the gates. Sends no bytes and touches no addresses.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from phaul.criu import loader
from phaul.criu.address_images import set_addresses, usable_at_once
from phaul.criu.addresses import readdress
from phaul.criu.features import CriuFeatures, probe
from phaul.criu.gates import CriuDump, CriuRestore
from phaul.criu.guard import CopyGuard
from phaul.criu.identity_images import set_host_name, set_macs
from phaul.criu.lazy_pages import PageLoader, look
from phaul.criu.pre_dump import pre_dump
from phaul.migration.engine_requests import DumpRequest, PreDumped, PreDumpRequest, RestoreRequest
from phaul.migration.facts import HostFacts
from phaul.migration.interfaces import HeldDump, HeldRestore
from phaul.migration.lazy import Loading, LoadingState
from phaul.migration.readdressing import STAYING, Readdressing
from phaul.rpc.criu import rpc_pb2
from phaul.system import keeper
from phaul.system.attendants import Attendants
from phaul.system.memory import page_size_bytes
from phaul.system.namespaces import CLONE_NEWNET

# CRIU's levels: 1 error, 2 warning, 3 info, 4 debug. The first errors are what `criu.log` needs; 4 costs frozen time.
LOG_LEVEL = 2


class CriuEngine:
    """CRIU on this host.

    Args:
        criu: the program, a name in PATH or a path.
        logs: a directory for CRIU's logs and statistics, one directory a migration below it; made when needed.
        attendants: where guards and loaders come from.
    """

    def __init__(self, criu: str, logs: Path, attendants: Attendants) -> None:
        self._attendants = attendants
        self._criu = criu
        self._logs = logs
        self._features: CriuFeatures | None = None

    async def describe(self) -> HostFacts:
        """What CRIU can do here, as `criu.features` found it."""
        found = await self._probe()
        return HostFacts(
            criu_version=found.version_text, criu_path=found.path, features=found.features, problems=found.problems
        )

    async def _probe(self) -> CriuFeatures:
        if self._features is None or self._features.problems:
            self._features = await probe(self._criu)
        return self._features

    def logs(self, migration_id: str) -> Path:
        """The directory of a migration's logs and statistics."""
        return self._logs / migration_id

    async def pre_dump(self, request: PreDumpRequest) -> PreDumped:
        """A round of pre-copy."""
        request.images.mkdir(mode=0o700)
        features = await self._probe()
        logs = self.logs(request.migration_id)
        with _Directories(request.images, logs) as directories:
            options = rpc_pb2.Options(
                images_dir_fd=directories.images,
                work_dir_fd=directories.logs,
                log_file=f"pre-dump-{request.images.name}.log",
                log_level=LOG_LEVEL,
                pid=request.root_pid,
                track_mem=True,
                parent_img=_beside(request.images, request.parent),
                ps=rpc_pb2.PageServer(fd=request.page_channel_fd),
            )
            inherited = (directories.images, directories.logs, request.page_channel_fd)
            return await pre_dump(features.path, options, inherited, logs, page_size_bytes())

    @asynccontextmanager
    async def dump(
        self, request: DumpRequest, about_to_freeze: Callable[[int], Awaitable[None]]
    ) -> AsyncIterator[HeldDump]:
        """Freeze the tree and dump it; the memory goes into the page channel."""
        features = await self._probe()
        with _Directories(request.images, self.logs(request.migration_id)) as directories:
            options = rpc_pb2.Options(
                images_dir_fd=directories.images,
                work_dir_fd=directories.logs,
                log_file="dump.log",
                log_level=LOG_LEVEL,
                pid=request.root_pid,
                notify_scripts=True,
                tcp_established=request.keep_connections,
                tcp_close=request.close_connections,
                tcp_skip_in_flight=request.drop_unaccepted,
                shell_job=request.shell_job,
                file_locks=True,
                link_remap=True,
                ps=rpc_pb2.PageServer(fd=request.page_channel_fd),
                network_lock=rpc_pb2.SKIP if request.fenced or request.close_connections else _network_lock(features),
                parent_img=_beside(request.images, request.parent),
                empty_ns=CLONE_NEWNET if request.empty_network else None,
                track_mem=request.parent is not None,  # or all is sent again (criu/mem.c: __page_in_parent)
            )
            gate = CriuDump(
                features.path,
                rpc_pb2.Request(type=rpc_pb2.DUMP, opts=options),
                (directories.images, directories.logs, request.page_channel_fd),
                self.logs(request.migration_id),
                request.page_channel_fd,
                about_to_freeze,
            )
            async with gate:
                await self.change_identity(
                    request.images,
                    request.new_addresses,
                    STAYING
                    if request.empty_network
                    else request.readdressing,  # its images `network.own_content` makes
                    request.new_macs,
                    request.host_name,
                )
                yield gate

    async def change_identity(
        self,
        images: Path,
        new_addresses: Sequence[tuple[str, str]] = (),
        readdressing: Readdressing = STAYING,
        new_macs: Sequence[tuple[str, str]] = (),
        host_name: str = "",
    ) -> None:
        """Change the images that say it."""
        readdress(images, dict(new_addresses))
        set_addresses(images, readdressing)
        set_macs(images, dict(new_macs))
        set_host_name(images, host_name)

    @asynccontextmanager
    async def restore(self, request: RestoreRequest) -> AsyncIterator[HeldRestore]:
        """Restore the tree from its images up to the gate."""
        features = await self._probe()
        if request.external:
            usable_at_once(request.images)
        with _Directories(request.images, self.logs(request.migration_id)) as directories:
            options = rpc_pb2.Options(
                images_dir_fd=directories.images,
                work_dir_fd=directories.logs,
                log_file="restore.log",
                log_level=LOG_LEVEL,
                notify_scripts=True,
                tcp_established=request.keep_connections,
                tcp_close=request.close_connections,
                shell_job=request.shell_job,
                file_locks=True,
                link_remap=True,  # how the network was locked, CRIU reads from the images
                lazy_pages=request.lazy,
                external=request.external,
                empty_ns=CLONE_NEWNET if request.empty_network else None,
            )
            logs = self.logs(request.migration_id)

            def loader_lives() -> bool:
                return not request.lazy or look(logs).state is not LoadingState.LOST

            gate = CriuRestore(
                features.path,
                rpc_pb2.Request(type=rpc_pb2.RESTORE, opts=options),
                (directories.images, directories.logs),
                logs,
                request.root_pid,
                loader_lives,
                request.setting_up,
                request.guard,
                # CRIU locks the network that it leaves empty between these two (4.2.1, criu/cr-restore.c).
                "post-setup-namespaces" if request.empty_network else "setup-namespaces",
            )
            async with gate:
                yield gate

    async def guard(self) -> CopyGuard:
        """Start what ends a copy that its CRIU leaves behind."""
        return CopyGuard(await self._attendants.take(keeper.__name__))

    async def loader(self, migration_id: str, images: Path) -> PageLoader:
        """Start what loads the pages of a lazily restored copy."""
        pages = PageLoader(await self._attendants.take(loader.__name__))
        await pages.begin(self.logs(migration_id), images)
        return pages

    async def loading(self, migration_id: str) -> Loading:
        """Say how far it is."""
        return look(self.logs(migration_id))


class _Directories:
    """The two directories that CRIU is given by descriptor, closed again on leaving."""

    def __init__(self, images: Path, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.images = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
        self.logs = os.open(logs, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> _Directories:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.images)
        os.close(self.logs)


def _beside(images: Path, parent: Path | None) -> str | None:
    """Name the parent's directory as CRIU wants it: relative to the images."""
    return os.path.relpath(parent, images) if parent is not None else None


def _network_lock(features: CriuFeatures) -> rpc_pb2.NetworkLock.ValueType:
    nftables = "network_lock_nftables" in features.features
    return rpc_pb2.NFTABLES if nftables else rpc_pb2.IPTABLES
