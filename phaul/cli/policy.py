"""`phaul policy`: who may do what on this host. The file is read in `phaul.agent.policy_file`; this shows it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from phaul.cli import options
from phaul.cli.console import clean, make_console
from phaul.cli.machine import print_object
from phaul.cli.run import run_command
from phaul.config import DEFAULT_POLICY, AgentConfig
from phaul.units import format_bytes

app = typer.Typer(
    no_args_is_help=True,
    help="Who may do what on this host.",
    epilog=f"""[bold]Examples[/]

phaul policy check ./policy.toml           before it is put to {DEFAULT_POLICY}

phaul policy show                          what the agent goes by

The agent reads the file again within two seconds after it was changed, and on SIGHUP.
""",
)

_SAYS = {
    "users": "users",
    "groups": "groups",
    "owners": "processes of",
    "units": "in the units",
    "cgroups": "in the control groups",
    "executables": "that run",
    "addresses": "and may move the addresses",
}


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Default: the agent's policy file.")] = None,
    json_output: options.JsonOption = False,
) -> None:
    """Say whether a policy file is right, and where it is not."""
    run_command(_check(file or AgentConfig().policy, json_output), json_output=json_output)


@app.command()
def show(json_output: options.JsonOption = False, socket: options.SocketOption = None) -> None:
    """Show the policy that this host's agent goes by."""
    run_command(_show(options.socket_path(socket), json_output), json_output=json_output)


async def _check(path: Path, json_output: bool) -> int:
    from phaul.agent.policy_file import read_policy

    policy = dataclasses.asdict(read_policy(path, trusted=False))
    if json_output:
        print_object({"event": "policy", "path": str(path), **policy})
    else:
        make_console().print(f"{path} is a right policy.", soft_wrap=True)
        make_console().print(_table(policy))
    return 0


async def _show(path: Path, json_output: bool) -> int:
    from phaul.agent.client import AgentClient

    async with AgentClient(path) as client:
        report = await client.describe_policy()
    policy = json.loads(report.policy)
    if json_output:
        facts = {"path": report.path, "exists": report.exists, "problem": report.problem}
        print_object({"event": "policy", **facts, "audit_log": report.audit_log, **policy})
        return 1 if report.problem else 0
    console = make_console()
    console.print(clean(report.path) if report.exists else f"There is no {clean(report.path)}: this is the default.")
    if report.problem:
        said = Text("The file as it is now is not in force: ", style="bold red")
        console.print(said.append(clean(report.problem), style="not bold"), soft_wrap=True)
    console.print(_table(policy))
    console.print(f"Who did what is in {clean(report.audit_log)} (`phaul audit`).", soft_wrap=True)
    return 1 if report.problem else 0


def _table(policy: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for title, name in (("may send here", "send"), ("may receive from here", "receive")):
        hosts = policy["peers"][name]
        table.add_row(title, "every trusted host" if hosts is None else clean(", ".join(hosts)) or "no host")
    memory, migrations = policy["limits"]["memory"], policy["limits"]["migrations"]
    table.add_row("memory of a workload", "no limit" if memory is None else f"{format_bytes(memory)} at most")
    table.add_row("migrations at once", "no limit" if migrations is None else f"{migrations} at most")
    table.add_row("root", "may migrate everything")
    for rule in policy["users"]:
        said = (f"{_SAYS[name]} {clean(', '.join(values))}" for name, values in rule.items() if values)
        who, *what = said
        table.add_row(who, "; ".join(what))
    return table
