"""`phaul agent`: runs the daemon of this host in the foreground. What it does is in `phaul.agent`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from phaul.cli.run import run_command
from phaul.config import DEFAULT_PEER_PORT, AgentConfig

EPILOG = f"""[bold]Examples[/]

phaul agent

phaul agent --listen 10.0.0.2:{DEFAULT_PEER_PORT} --log-format json

Every option can be set as PHAUL_NAME in the environment as well, for example PHAUL_LISTEN; options win.
"""


class LogFormat(StrEnum):
    """How the log is written."""

    CONSOLE = "console"
    JSON = "json"


class OnOff(StrEnum):
    """Whether or not."""

    ON = "on"
    OFF = "off"


class LogLevel(StrEnum):
    """What the log leaves out."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def agent(
    socket: Annotated[Path | None, typer.Option(metavar="PATH", help="Unix socket for people on this host.")] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help=f"Where other agents connect. Default: 127.0.0.1:{DEFAULT_PEER_PORT}."),
    ] = None,
    page_port: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=65535, help="Port for memory pages; 0 is any free one.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Use no certificates, and allow agents off loopback all the same: whoever reaches it is root here.",
        ),
    ] = False,
    page_encryption: Annotated[
        OnOff | None,
        typer.Option(help="Encrypt memory on its way. off, on both hosts, is for a network that you trust."),
    ] = None,
    runtime_dir: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Images under way; must be in memory (tmpfs).")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(metavar="PATH", help="What is known of migrations past.")] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who may do what here. Default: /etc/phaul/policy.toml.")
    ] = None,
    audit_log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Who did what. Default: audit.jsonl in the state directory."),
    ] = None,
    children_group: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Control group (v2) in which CRIU and workloads get theirs; the unit sets it."
        ),
    ] = None,
    hooks_dir: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Action scripts, one directory a stage. Default: /etc/phaul/hooks.d."),
    ] = None,
    hook_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.1, help="What an action script may take. Default: 30.")
    ] = None,
    criu: Annotated[str | None, typer.Option(metavar="PROGRAM", help="CRIU: a name in PATH, or a path.")] = None,
    exit_when_idle: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", min=0, help="End when nothing has been under way for so long; 0: never."),
    ] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="How the log is written.")] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="What the log leaves out.")] = None,
) -> None:
    """Run the agent of this host: it takes part in migrations until SIGTERM."""
    typed: dict[str, Any] = {
        "socket": socket,
        "listen": listen,
        "page_port": page_port,
        "insecure": insecure or None,
        "page_encryption": page_encryption.value if page_encryption else None,
        "runtime_dir": runtime_dir,
        "state_dir": state_dir,
        "policy": policy,
        "audit_log": audit_log,
        "children_group": children_group,
        "hooks_dir": hooks_dir,
        "hook_timeout": hook_timeout,
        "criu": criu,
        "exit_when_idle": exit_when_idle,
        "log_format": log_format.value if log_format else None,
        "log_level": log_level.value if log_level else None,
    }
    run_command(_serve({name: value for name, value in typed.items() if value is not None}))


async def _serve(typed: dict[str, Any]) -> int:
    from phaul.agent.server import serve

    await serve(AgentConfig(**typed))
    return 0
