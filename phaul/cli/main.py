"""The command `phaul`: the list of commands, and the outermost place where errors become exit statuses."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from phaul import __version__
from phaul.cli import (
    agent,
    audit,
    check,
    dirty_rate,
    doctor,
    dump,
    host,
    lab,
    migrate,
    policy,
    resolve,
    restore,
    status,
    trust,
)
from phaul.cli.failure import INTERRUPTED_STATUS, defect_of
from phaul.cli.options import JsonOption
from phaul.cli.run import show_error
from phaul.errors import PhaulError

EPILOG = """[bold]Examples[/]

phaul doctor

phaul check 4711 --to b.example

phaul migrate 4711 --to b.example --address 10.0.0.50/24

[bold]Exit status[/]

0 done · 2 usage · 10 refused, 11 no agent answers, 12 not trusted, 13 not allowed: nothing was touched ·
14 not installed · 15 a dump was not restored ·
20 to 26 rolled back, it runs on the source · 30 rolled back with leftovers · 40 in doubt · 41 lost, images kept ·
70 a defect of phaul (PHAUL_DEBUG=1 shows the traceback) · 130 interrupted
"""

app = typer.Typer(
    name="phaul",
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"phaul {__version__}")
        raise typer.Exit


@app.callback()
def phaul(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Move running Linux processes to another host, and keep their TCP connections.

    An agent on each host does the work (`phaul agent`); these commands talk to the one of this host.
    """


app.command(epilog=migrate.MIGRATE_EPILOG)(migrate.migrate)
app.command(epilog=check.EPILOG)(check.check)
app.command(epilog=dump.EPILOG)(dump.dump)
app.command(epilog=restore.EPILOG)(restore.restore)
app.command()(migrate.watch)
app.command()(migrate.cancel)
app.command()(status.status)
app.command(epilog=resolve.EPILOG)(resolve.resolve)
app.command()(doctor.doctor)
app.command("dirty-rate", epilog=dirty_rate.EPILOG)(dirty_rate.dirty_rate)
app.command(epilog=agent.EPILOG)(agent.agent)


app.command(epilog=audit.EPILOG)(audit.audit)
app.add_typer(lab.app, name="lab")
app.add_typer(policy.app, name="policy")
app.add_typer(trust.app, name="trust")
app.add_typer(host.app, name="host")
if find_spec("phaul.cli.demo") is not None:  # left out of packages that have no lab
    app.command("demo")(import_module("phaul.cli.demo").demo)


@app.command("version")
def show_version(json_output: JsonOption = False) -> None:
    """Print the version."""
    if json_output:
        from phaul.cli.machine import print_object

        print_object({"event": "version", "version": __version__})
    else:
        print(f"phaul {__version__}")


def main() -> None:
    """Run `phaul`, and leave with the exit status that docs/errors.md lists."""
    try:
        app()
    except PhaulError as error:
        status_left = show_error(error)
    except BrokenPipeError:
        status_left = 1
    except KeyboardInterrupt:
        status_left = INTERRUPTED_STATUS
    except Exception as error:  # noqa: BLE001 # the outermost place
        status_left = show_error(defect_of(error))
    else:
        return
    sys.exit(status_left)
