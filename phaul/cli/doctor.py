"""`phaul doctor`: what this host can do, what it lacks, what that means and what to install."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from phaul.agent.messages import to_message
from phaul.cli import options
from phaul.cli.check import HOST_LABELS, host_values, problem_lines
from phaul.cli.console import Glyphs, clean, glyphs_for, make_console
from phaul.cli.display import counted, indented
from phaul.cli.machine import error_object, message_object, print_object
from phaul.cli.run import run_command
from phaul.cli.view import refuses
from phaul.errors import NotTrustedError, PhaulError, PreflightError, UnreachableError
from phaul.rpc.v1.facts_pb2 import HostFacts

REACH_SECONDS = 5.0  # for a connection to the other host's agent


@dataclass(frozen=True, slots=True)
class Feature:
    """One ability of a host. `without` says what is lost and what to do where it is missing."""

    name: str
    gives: str
    without: str
    of_criu: bool = True  # asked of CRIU: without one it cannot be known


FEATURES = (
    Feature(
        "mem_track",
        "finds changed memory while the workload runs (pre-copy)",
        "memory moves while the workload stands still; needs a kernel with CONFIG_MEM_SOFT_DIRTY",
    ),
    Feature(
        "lazy_pages",
        "lets a copy run before all its memory is there",
        "all memory is loaded first; needs CONFIG_USERFAULTFD, and root",
    ),
    Feature(
        "pidfd_store",
        "tells a process from a later one with the same PID",
        "CRIU compares start times instead, which is enough; comes with kernel 5.6",
    ),
    Feature(
        "network_lock_nftables",
        "holds connections still with nftables",
        "CRIU uses iptables, which must be installed; install nftables and a CRIU built with it",
    ),
    Feature(
        "huge_tmpfs",
        "receives memory into 2 MiB pages",
        "memory is received more slowly; needs CONFIG_TRANSPARENT_HUGEPAGE, and shmem_enabled other than `deny`",
        of_criu=False,
    ),
)


def doctor(
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="HOST[:PORT]", help="Also try whether that host's agent can be reached."),
    ] = None,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Show what earlier crashes have left on this host, and remove it when you say yes."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --fix: remove it without asking.")] = False,
    json_output: options.JsonOption = False,
    socket: options.SocketOption = None,
) -> None:
    """Say what this host can do, what it lacks and what to install. Works without a running agent.

    Exits with 0 where the host can take part in migrations, 10 where it cannot, 11 where HOST cannot be reached.
    --fix asks the agent, which knows what a migration still needs; exits with 30 where something is left.
    """
    if fix:
        from phaul.cli.fix import fix_host

        run_command(fix_host(options.socket_path(socket), yes=yes, json_output=json_output), json_output=json_output)
    run_command(_doctor(options.socket_path(socket), to, json_output), json_output=json_output)


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found: `agent_error` is why no agent was asked, `reach_error` why the other host did not answer."""

    host: HostFacts
    agent_error: PhaulError | None = None
    destination: str = ""
    reach_error: PhaulError | None = None

    @property
    def can_take_part(self) -> bool:
        """Whether nothing keeps this host from migrations, apart from starting the agent."""
        return not any(refuses(problem) for problem in self.host.problems)

    @property
    def exit_status(self) -> int:
        """What `phaul doctor` exits with."""
        if not self.can_take_part:
            return PreflightError.exit_status
        return self.reach_error.exit_status if self.reach_error else 0


async def _doctor(path: Path, to: str | None, json_output: bool) -> int:
    findings = await _examine(path, to)
    if json_output:
        print_object(_object(findings))
    else:
        console = make_console()
        console.print(report(findings, path, glyphs_for(console)))
    return findings.exit_status


async def _examine(path: Path, to: str | None) -> Findings:
    from phaul.agent.client import AgentClient
    from phaul.agent.destination import parse_destination

    destination = parse_destination(to) if to else None
    agent_error: PhaulError | None = None
    try:
        async with AgentClient(path) as client:
            host = await client.describe_host()
    except (UnreachableError, NotTrustedError) as error:
        from phaul.agent.wiring import describe_host
        from phaul.observe.logs import configure_logs

        # Not configured, structlog writes every step of the probe to standard output, between the lines of --json.
        configure_logs("warning", "console")
        agent_error = error
        host = to_message(await describe_host(), HostFacts)
    reach_error = await _reach(destination.host, destination.port) if destination else None
    return Findings(host, agent_error, str(destination or ""), reach_error)


async def _reach(host: str, port: int) -> PhaulError | None:
    """Connect to the other agent's port and hang up: whether it would trust us, only a dry run can tell."""
    try:
        async with asyncio.timeout(REACH_SECONDS):
            _reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        if isinstance(error, TimeoutError):
            reason = f"no answer within {REACH_SECONDS:.0f} s"
        else:  # asyncio's own texts repeat the address; a name that cannot be resolved has a negative errno
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        return UnreachableError(
            f"nothing answers at {host} port {port}: {reason}",
            hint="Start `phaul agent --listen` there on an address that this host reaches, and let the port through.",
        )
    writer.close()
    return None


def report(findings: Findings, path: Path, glyphs: Glyphs) -> RenderableType:
    """Draw the host, its features, its problems and the verdict."""
    host = findings.host
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for label, value in zip(HOST_LABELS, host_values(host), strict=True):
        facts.add_row(label, Text(value or "unknown"))
    if findings.agent_error is None:
        facts.add_row("agent", Text(f"running at {path}", style="green"))
    else:
        facts.add_row("agent", Text(findings.agent_error.message, style="yellow"))
        facts.add_row("", Text(f"{glyphs.hint} {findings.agent_error.hint}", style="cyan"))
    if findings.destination:
        facts.add_row(findings.destination, _reach_text(findings, glyphs))
    parts: list[RenderableType] = [indented(facts), Text(""), _features(host, glyphs), Text("")]
    parts += [problem_lines(problem, glyphs) for problem in host.problems]
    if host.problems:
        parts.append(Text(""))
    if findings.can_take_part:
        verdict = Text(f"{glyphs.done} This host can take part in migrations.", style="bold green")
    else:
        count = sum(refuses(problem) for problem in host.problems)
        verdict = Text(f"This host cannot take part: {counted(count, 'problem')} above.", style="bold red")
    return Group(*parts, verdict)


def _reach_text(findings: Findings, glyphs: Glyphs) -> Text:
    if findings.reach_error is None:
        return Text("something answers; `phaul migrate PID --to HOST --dry-run` compares the hosts", style="green")
    return Text.assemble(
        Text(clean(findings.reach_error.message), style="red"),
        Text(f"\n{glyphs.hint} {findings.reach_error.hint}", style="cyan"),
    )


def _features(host: HostFacts, glyphs: Glyphs) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column()
    known = {feature.name for feature in FEATURES}
    for feature in FEATURES:
        if feature.name in host.features:
            grid.add_row(Text(glyphs.done, style="green"), feature.name, Text(feature.gives, style="dim"))
        elif feature.of_criu and not host.criu_version:
            grid.add_row(Text(glyphs.pending, style="dim"), feature.name, Text("unknown without CRIU", style="dim"))
        else:
            text = Text.assemble(Text("missing: ", style="yellow"), feature.without)
            grid.add_row(Text(glyphs.warning, style="yellow"), feature.name, text)
    for name in sorted(set(host.features) - known):
        grid.add_row(Text(glyphs.done, style="green"), clean(name), "")
    return indented(grid)


def _object(findings: Findings) -> dict[str, object]:
    return {
        "event": "doctor",
        "can_take_part": findings.can_take_part,
        "exit_status": findings.exit_status,
        "agent_running": findings.agent_error is None,
        "agent_error": error_object(findings.agent_error) if findings.agent_error else None,
        "destination": findings.destination or None,
        "destination_error": error_object(findings.reach_error) if findings.reach_error else None,
        "missing_features": [feature.name for feature in FEATURES if feature.name not in findings.host.features],
        "host": message_object(findings.host),
    }
