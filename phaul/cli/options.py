"""Options that several commands share, and what their values mean. Used by the command modules of `cli`."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from phaul.config import AgentConfig
from phaul.errors import UsageError
from phaul.install.target import Login
from phaul.migration.facts import Compression, Mode, OnStall
from phaul.rpc.v1.facts_pb2 import NewAddress, NewMac
from phaul.units import parse_seconds

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line, and nothing else.")]
SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket", metavar="PATH", help="Socket of this host's agent. Default: PHAUL_SOCKET or /run/phaul/agent.sock."
    ),
]
MigrationArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Migration, as `phaul status` lists it; its first characters suffice.")
]

HookOption = Annotated[
    list[str] | None,
    typer.Option(
        "--hook",
        metavar="FILE",
        help="Action script, there on both hosts, that is run at every stage; beside those of /etc/phaul/hooks.d. "
        "May be given several times.",
    ),
]
NewAddressOption = Annotated[
    list[str] | None,
    typer.Option(
        "--new-address",
        metavar="OLD=NEW[/PREFIX]",
        help="Bind what is bound to OLD to NEW: an address of the destination, or one that the workload's own network "
        "namespace gets in place of OLD. All TCP connections are closed. May be given several times.",
    ),
]
NewGatewayOption = Annotated[
    list[str] | None,
    typer.Option(
        "--new-gateway",
        metavar="OLD=NEW",
        help="Have the routes of the workload's own network namespace go by NEW where they go by OLD. May be given "
        "several times.",
    ),
]
NewMacOption = Annotated[
    list[str] | None,
    typer.Option(
        "--new-mac",
        metavar="[DEVICE=]MAC",
        help="Give a device of the workload's own network namespace another MAC on the destination. May be given "
        "several times.",
    ),
]
HostNameOption = Annotated[
    str,
    typer.Option("--hostname", metavar="NAME", help="Give the workload's own UTS namespace another host name there."),
]
BandwidthOption = Annotated[
    str,
    typer.Option(
        "--bandwidth",
        metavar="RATE",
        help="Send no faster: 200M or 1G are bits a second, 25MB/s is bytes. Default: what leaves the link usable.",
    ),
]
CompressOption = Annotated[
    Compression,
    typer.Option("--compress", help="Compress memory on its way: auto does it where it is measured to help."),
]
ModeOption = Annotated[
    Mode,
    typer.Option("--mode", help="How memory goes: in rounds while the workload runs, or all of it in the freeze."),
]
MaxDowntimeOption = Annotated[
    str,
    typer.Option(
        "--max-downtime",
        metavar="TIME",
        help="The pause that is acceptable (300ms): frozen once that is predicted to fit. Default: 500ms.",
    ),
]
MaxRoundsOption = Annotated[
    int,
    typer.Option("--max-rounds", min=0, help="At most so many rounds of pre-copy. Default: 30.", show_default=False),
]
OnStallOption = Annotated[
    OnStall,
    typer.Option(
        "--on-stall",
        help="When rounds do not bring the pause down to --max-downtime: give up, freeze all the same, or slow the "
        "workload's CPU down step by step.",
    ),
]

IdentityOption = Annotated[
    list[Path] | None,
    typer.Option("--identity", metavar="FILE", help="SSH: a private key to log in with; several times."),
]
KnownHostsOption = Annotated[
    Path | None, typer.Option("--known-hosts", metavar="FILE", help="SSH: default ~/.ssh/known_hosts.")
]
AcceptNewOption = Annotated[
    bool,
    typer.Option("--accept-new-host-key", help="SSH: take, and write down, the key of a host that is not known yet."),
]


def login(identities: Sequence[Path] | None, known_hosts: Path | None, accept_new: bool) -> Login:
    """How to log in over SSH, as typed; a password is asked for where there is somebody to ask."""

    def ask(prompt: str) -> str | None:
        return getpass.getpass(prompt) if sys.stdin.isatty() else None

    return Login(tuple(identities or ()), accept_new, known_hosts, ask)


def socket_path(option: Path | None) -> Path:
    """The socket to use: as typed, else from the environment, else the usual one."""
    return option or AgentConfig().socket


def duration(option: str, typed: str) -> float:
    """Read a time as typed, in seconds; raises `UsageError`."""
    try:
        return parse_seconds(typed)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def new_addresses(typed: Sequence[str]) -> list[NewAddress]:
    """Read --new-address as typed; raises `UsageError`."""
    from phaul.migration.new_addresses import parse_new_address

    return [
        NewAddress(old=each.old, new=each.new, prefix_length=each.prefix_length)
        for each in map(parse_new_address, typed)
    ]


def new_gateways(typed: Sequence[str]) -> list[NewAddress]:
    """Read --new-gateway as typed; raises `UsageError`."""
    from phaul.migration.new_addresses import parse_new_gateway

    return [NewAddress(old=each.old, new=each.new) for each in map(parse_new_gateway, typed)]


def new_macs(typed: Sequence[str]) -> list[NewMac]:
    """Read --new-mac as typed; raises `UsageError`."""
    from phaul.migration.new_identity import parse_new_mac

    return [NewMac(device=each.device, mac=each.mac) for each in map(parse_new_mac, typed)]


def directory(typed: Path) -> Path:
    """Give the directory that was typed as the agent has to be told of it; raises `UsageError`."""
    path = os.path.normpath(typed.absolute())
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the name of {path!r} is not UTF-8", hint="Rename it, or mount it elsewhere under another name."
        ) from error
    return Path(path)
