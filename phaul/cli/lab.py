"""`phaul lab`: two hosts and a client on this machine, to try phaul on. Mounted by `phaul.cli.main`.

Only shows and asks: everything is done by `phaul.lab.cluster`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.table import Table

from phaul.cli.console import clean, make_console
from phaul.cli.machine import print_object
from phaul.cli.run import show_error
from phaul.errors import LabError, PhaulError
from phaul.lab import cluster, image, machine, vm_image
from phaul.lab.cluster import Lab
from phaul.lab.host import Host

app = typer.Typer(
    no_args_is_help=True,
    help="Two hosts and a client on this machine, to try phaul on.",
    epilog=(
        "The hosts are named a, b and client. They live in namespaces, a and b with --vm in virtual machines: nothing "
        "of this machine's network changes. /srv/shared is the same directory on all that are no virtual machines."
    ),
)

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Which lab, where there are several.")]


@app.command()
def up(
    name: Name = cluster.DEFAULT_NAME,
    agents: Annotated[bool, typer.Option(help="Start phaul's agent on both hosts.")] = True,
    virtual: Annotated[
        bool, typer.Option("--vm", help="Virtual machines, emulated: own kernels, systemd, memory tracking.")
    ] = False,
) -> None:
    """Bring the lab up; the first time its image is made, which takes half a minute, and another one with --vm."""
    with errors_shown():
        started = time.monotonic()
        made = (vm_image.find() if virtual else image.find()) is None
        lab = Lab.up(name, virtual=virtual, agents=agents, progress=_say)
        took = "" if made else f" in {time.monotonic() - started:.1f} s"
        console = make_console()
        console.print(f"The lab is up{took}.")
        console.print(_host_table(lab))
        option = "" if name == cluster.DEFAULT_NAME else f" --name {name}"
        console.print(f"`phaul lab exec{option} a` gives a shell on host a, `phaul lab down{option}` ends the lab.")


@app.command()
def status(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Only this lab.")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object a lab.")] = False,
) -> None:
    """Show the labs that are up."""
    console = make_console()
    names = [name] if name else cluster.names()
    if not names and not json_output:
        console.print("No lab is up.")
    worst = 0
    for found in names:
        try:
            with errors_shown(json_output=json_output):
                lab = Lab.open(found)
                if json_output:
                    hosts = [_host_object(host) for host in lab.members]
                    kind = "virtual machines" if lab.machines else "namespaces"
                    image_used = lab.description.machines or lab.description.image
                    print_object({"event": "lab", "name": lab.name, "kind": kind, "image": image_used, "hosts": hosts})
                else:
                    console.print(f"Lab {lab.name}" + (" of virtual machines" if lab.machines else ""))
                    console.print(_host_table(lab))
        except typer.Exit as left:
            worst = max(worst, left.exit_code)  # one that is half there must not hide the others
    raise typer.Exit(worst)


@app.command(
    "exec",
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
    options_metavar="[--name NAME]",
)
def exec_(
    host: Annotated[str, typer.Argument(metavar="HOST", help="a, b or client.")],
    command: Annotated[list[str] | None, typer.Argument(metavar="[--] [COMMAND]...", help="Default: a shell.")] = None,
    name: Name = cluster.DEFAULT_NAME,
) -> None:
    """Run a command, or a shell, on a host of the lab, with this terminal and its exit status."""
    argv = list(command or ())
    if argv[:1] == ["--"]:
        argv = argv[1:]
    with errors_shown():
        machine.check()
        lab = Lab.open(name)
        raise typer.Exit(lab.host(host).interact(argv or ["bash"]))


@app.command()
def down(name: Name = cluster.DEFAULT_NAME) -> None:
    """Take the lab down, with all that runs in it; only the image stays."""
    with errors_shown():
        machine.check()
        found = cluster.down(name)
        make_console().print("The lab is down." if found else f"There is no lab {clean(name)}.")


@app.command()
def build(
    virtual: Annotated[bool, typer.Option("--vm", help="And that of the virtual machines, started once.")] = False,
) -> None:
    """Make the image of the hosts, unless it is there."""
    with errors_shown():
        machine.check(virtual=virtual)
        found = image.find()
        if found:
            _say(f"The image is {found}")
        else:
            image.ensure(_say)
        if virtual:
            cluster.prepare_machines(_say)


def _say(line: str) -> None:
    make_console().print(line)


@contextmanager
def errors_shown(*, json_output: bool = False) -> Iterator[None]:
    try:
        yield
    except PhaulError as error:
        raise typer.Exit(show_error(error, json_output=json_output)) from error
    except OSError as error:
        # The kernel refused a file, a mount or a process: no defect, but nothing that we foresaw either.
        wrapped = LabError(f"The machine refused: {error}.")
        wrapped.__cause__ = error
        raise typer.Exit(show_error(wrapped, json_output=json_output)) from error


def _host_table(lab: Lab) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("HOST", "IPV4", "IPV6", "AGENT"):
        table.add_column(title)
    for host in lab.members:
        if not host.alive:
            agent = "the host is down"
        elif host.agent_pid is not None:
            agent = "running"
        else:
            agent = "-" if host is lab.client else "not running"
        table.add_row(host.name, host.ip4, host.ip6, agent)
    return table


def _host_object(host: Host) -> dict[str, object]:
    return {
        "name": host.name,
        "up": host.alive,
        "ip4": host.ip4,
        "ip6": host.ip6,
        "pid": host.pid if host.alive else None,
        "agent_pid": host.agent_pid if host.alive else None,
    }
