"""What may be asked for at all: messages made into the values that `migration` works with, or refused as a whole.

Used by both services of the agent. Whoever calls may be hostile: a number, a name or an ID that no phaul of ours would
send goes no further than this. Raises `UsageError`. Pure.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from phaul.agent.messages import from_message
from phaul.errors import UsageError
from phaul.migration.address_rules import parse_address
from phaul.migration.at_rest import directory_of
from phaul.migration.dirty_rate import DirtyRateRequest
from phaul.migration.facts import (
    AddressFacts,
    AddressRequest,
    ConnectionFacts,
    FileFacts,
    MigrationRequest,
    Mode,
    NetworkFacts,
)
from phaul.migration.forecast import Outcome
from phaul.migration.hooks import HookScene, Stage
from phaul.migration.new_addresses import parse_new_address, parse_new_gateway
from phaul.migration.new_identity import parse_host_name, parse_new_mac
from phaul.migration.own_network import MAC, oddity
from phaul.migration.page_images import PageImage, Runs
from phaul.migration.peer import MOST_UNACCEPTED, Reservation
from phaul.rpc.v1 import agent_pb2, dirty_rate_pb2, facts_pb2, peer_pb2
from phaul.system.memory import page_size_bytes

MIGRATION_ID = re.compile(r"[0-9a-f]{8,64}")  # `secrets.token_hex`; it names directories, tables and control groups
HIGHEST_PID = 1 << 22  # PID_MAX_LIMIT of include/linux/threads.h
MOST_MEMORY_BYTES = 1 << 52  # of an address space with five levels of page tables
MOST_ADDRESSES = 256
MOST_LEARNT_US = 1 << 40  # twelve days of downtime
MOST_HOOKS = 64
MOST_LINKS = 64
MOST_SETTINGS = 4096
LONGEST_ADDRESS = 64
MOST_IMAGES = 1 << 16  # tasks, and pieces of shared memory
MOST_RUNS = 1 << 22  # of pages that were never seen to be right, in one image
LONGEST_TEXT = 4096  # PATH_MAX
LONGEST_HOST_NAME = 253

D = TypeVar("D")


def migration_id(text: str) -> str:
    """Give back the ID of a migration that another host has named."""
    if not MIGRATION_ID.fullmatch(text):
        raise UsageError(f"{text[:80]!r} is no migration's ID")
    return text


def observed(request: peer_pb2.ObserveRequest) -> tuple[tuple[int, ...], tuple[FileFacts, ...]]:
    """Read which PIDs and files a peer asks about."""
    for number in request.ids:
        _in("a PID", number, 1, HIGHEST_PID)
    for file in request.files:
        _short("a path", file.path)
    return tuple(request.ids), tuple(_from(file, FileFacts) for file in request.files)


def probed(request: peer_pb2.ObserveRequest) -> tuple[AddressFacts, ...]:
    """Read which addresses the network shall be asked for."""
    found = tuple(_from(each, AddressFacts) for each in request.addresses)
    _addresses(found)
    return found


def wanted_macs(request: peer_pb2.ObserveRequest) -> tuple[str, ...]:
    """Read which MACs nobody may have."""
    if len(request.macs) > MOST_LINKS or not all(MAC.fullmatch(each) for each in request.macs):
        raise UsageError("what was asked for are no MACs of a workload's devices")
    return tuple(request.macs)


def reservation(request: peer_pb2.PrepareRequest) -> Reservation:
    """Read what shall be held ready for a migration."""
    found = _from(request, Reservation)
    migration_id(found.migration_id)
    _in("a PID", found.root_pid, 1, HIGHEST_PID)
    _in("the memory", found.memory_bytes, 0, MOST_MEMORY_BYTES)
    _in("a port", found.source_port, 0, 65535)
    _short("a command", found.command)
    _short("a host's name", found.source_host, LONGEST_HOST_NAME)
    _short("a host's name", found.destination_host, LONGEST_HOST_NAME)
    hook_files(found.hooks)
    _addresses(found.addresses)
    if found.network is not None:
        _network(found.network)
    return found


def unaccepted(request: peer_pb2.RestoreRequest) -> tuple[ConnectionFacts, ...]:
    """Read whose connections the copy will not have."""
    if len(request.unaccepted) > MOST_UNACCEPTED:
        raise UsageError(f"{len(request.unaccepted)} connections that wait to be accepted are more than are told of")
    found = tuple(_from(each, ConnectionFacts) for each in request.unaccepted)
    for each in found:
        try:
            families = {ip_address(address).version for address in (each.local_address, each.remote_address)}
        except ValueError as error:
            raise UsageError("a connection without addresses cannot be") from error
        if each.protocol != "tcp" or len(families) != 1:
            raise UsageError("such a connection cannot be")
        for port in (each.local_port, each.remote_port):
            _in("a port", port, 1, 65535)
    return found


def hook_files(files: Sequence[str]) -> tuple[str, ...]:
    """Read which action scripts are named."""
    if len(files) > MOST_HOOKS:
        raise UsageError(f"{len(files)} action scripts are more than may be named")
    for file in files:
        _short("a path", file)
    return tuple(files)


def hooks_of_stage(request: peer_pb2.RunHooksRequest) -> tuple[Stage, HookScene]:
    """Read which action scripts shall be run, and what they are told. Those of rollback nobody can ask for."""
    stages = {str(stage): stage for stage in Stage if stage is not Stage.ROLLBACK}
    if request.stage not in stages:
        raise UsageError(f"there is no stage {request.stage[:80]!r} at which action scripts could be asked for")
    scene = _from(request.scene, HookScene)
    migration_id(scene.migration_id)
    _in("a PID", scene.root_pid, 1, HIGHEST_PID)
    _short("a command", scene.command)
    for name in (scene.source, scene.destination):
        _short("a host's name", name, LONGEST_HOST_NAME)
    _addresses(scene.addresses)
    hook_files(scene.files)
    return stages[request.stage], scene


def pages(request: peer_pb2.HashedPagesRequest | peer_pb2.ReceivedContentRequest, after: int = 0) -> Runs:
    """Read which pages are meant, runs that ascend from an address on."""
    if len(request.addresses) != len(request.pages):
        raise UsageError("each run of pages has an address and a count")
    size = page_size_bytes()
    for address, count in zip(request.addresses, request.pages, strict=True):
        if address % size or address < after or not 0 < count <= (MOST_MEMORY_BYTES - address) // size:
            raise UsageError(f"there can be no {count} pages at {address:#x}")
        after = address + count * size
    _short("an image's name", request.name)
    return tuple(zip(request.addresses, request.pages, strict=True))


def pending(messages: Sequence[peer_pb2.HashedPagesRequest]) -> tuple[PageImage, ...]:
    """Read which pages shall be hashed again; an image that has many comes in several messages."""
    runs: dict[str, list[tuple[int, int]]] = {}
    for message in messages:
        before = runs.setdefault(message.name, [])
        if len(runs) > MOST_IMAGES or len(before) > MOST_RUNS:
            raise UsageError("more pages shall be hashed again than there can be")
        after = before[-1][0] + before[-1][1] * page_size_bytes() if before else 0
        before.extend(pages(message, after))
    return tuple(PageImage(name, tuple(found)) for name, found in runs.items())


def reason(text: str) -> str:
    """Read why something shall be undone."""
    return text[:LONGEST_TEXT].replace("\0", "")


def lesson(message: peer_pb2.Lesson) -> Outcome:
    """Read what a migration has taught."""
    found = _from(message, Outcome)
    _in("the memory's size", found.memory_bytes, 0, MOST_MEMORY_BYTES)
    for took_us in (found.frozen_us, found.freeze_us, found.restore_us):
        _in("a time that something took", took_us, 0, MOST_LEARNT_US)
    return found


def migration_request(request: facts_pb2.MigrationRequest) -> MigrationRequest:
    """Read what a person asks for."""
    found = _from(request, MigrationRequest)
    _in("a PID", found.root_pid, 1, HIGHEST_PID)
    _addresses(found.addresses)
    hook_files(found.hooks)
    _identity(found)
    if found.at_rest:
        _dump(found)
    for name in ("timeout_seconds", "freeze_timeout_seconds", "max_downtime_seconds"):
        _seconds(name, getattr(found, name))
    return found


def restore_request(request: agent_pb2.RestoreDumpRequest) -> tuple[Path, MigrationRequest]:
    """Read which dump shall be restored, and as whom."""
    identity = facts_pb2.MigrationRequest(
        new_addresses=request.new_addresses,
        new_gateways=request.new_gateways,
        new_macs=request.new_macs,
        host_name=request.host_name,
    )
    found = _from(identity, MigrationRequest)
    _identity(found)
    return _directory(request.directory), found


def dirty_rate_request(request: dirty_rate_pb2.DirtyRateRequest) -> DirtyRateRequest:
    """Read what a person asks for."""
    found = _from(request, DirtyRateRequest)
    _in("a PID", found.root_pid, 1, HIGHEST_PID)
    _seconds("seconds", found.seconds)
    _seconds("max_downtime_seconds", found.max_downtime_seconds)
    return found


def _identity(found: MigrationRequest) -> None:
    if max(len(found.new_addresses), len(found.new_gateways)) > MOST_ADDRESSES:
        raise UsageError("so many new addresses or gateways cannot be")
    for each in found.new_addresses:
        read = parse_new_address(f"{each.old}={each.new}/{each.prefix_length}".removesuffix("/0"))
        if read != each:  # spelled as it is compared
            raise UsageError(f"{each.old}={each.new} is not written as `phaul` writes it")
    for each in found.new_gateways:
        parse_new_gateway(f"{each.old}={each.new}")
    if len(found.new_macs) > MOST_LINKS:
        raise UsageError(f"{len(found.new_macs)} MACs are more than one workload may have")
    for new in found.new_macs:
        parse_new_mac(f"{new.device}={new.mac}" if new.device else new.mac)
    if found.host_name:
        parse_host_name(found.host_name)


def _dump(found: MigrationRequest) -> None:
    _directory(directory_of(found.destination) or "")
    if found.addresses or found.auto_addresses or found.hooks or found.mode is not Mode.STOP_AND_COPY:
        raise UsageError("a dump takes no addresses along, names no action scripts and is made at one stroke")
    if found.new_addresses or found.new_gateways or found.new_macs or found.host_name:
        raise UsageError("a dump keeps the identity of its workload; `phaul restore` gives another")


def _directory(text: str) -> Path:
    _short("a path", text)
    if not text.startswith("/") or text != os.path.normpath(text):
        raise UsageError(f"{text!r} is no absolute path of a directory")
    return Path(text)


def _from(message: Message, kind: type[D]) -> D:
    try:
        return from_message(message, kind)
    except ValueError as error:
        raise UsageError(f"what was asked is not known here: {error}") from error


def _in(what: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise UsageError(f"{what} cannot be {number}")


def _seconds(name: str, number: float) -> None:
    if not math.isfinite(number) or number < 0:
        raise UsageError(f"{name} cannot be {number}")


def _short(what: str, text: str, longest: int = LONGEST_TEXT) -> None:
    if len(text) > longest or "\0" in text:
        raise UsageError(f"{what} of {len(text)} characters cannot be")


def _network(found: NetworkFacts) -> None:
    if len(found.links) > MOST_LINKS or len(found.names) > MOST_LINKS or len(found.settings) > MOST_SETTINGS:
        raise UsageError("a network of so many parts cannot be")
    if odd := oddity(found):
        raise UsageError(f"a network with {odd} cannot be")
    for link in found.links:
        for address in (*link.addresses, *link.link_local, *link.gateways, *link.on_link):
            _short("an address", address, LONGEST_ADDRESS)
            try:
                ip_interface(address)
            except ValueError as error:
                raise UsageError(f"{address!r} is no address") from error


def _addresses(found: Sequence[AddressFacts | AddressRequest]) -> None:
    if len(found) > MOST_ADDRESSES:
        raise UsageError(f"{len(found)} addresses are more than one workload may have")
    for each in found:
        parse_address(f"{each.address}/{each.prefix_length}" + (f"@{each.device}" if each.device else ""))
