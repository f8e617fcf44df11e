"""Options that several commands share, and what their values mean. Used by the command modules of `cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phaul.config import AgentConfig

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


def socket_path(option: Path | None) -> Path:
    """The socket to use: as typed, else from the environment, else the usual one."""
    return option or AgentConfig().socket
