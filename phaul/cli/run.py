"""Running one command: the event loop, the errors, the exit status. Every command that does something uses it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import typer

from phaul.cli.failure import DEBUG_VARIABLE, defect_of, print_traceback, report_failure
from phaul.errors import PhaulError


def run_command(work: Coroutine[Any, Any, int], *, json_output: bool = False) -> None:
    """Run a command to its end and leave with the exit status it gives, or with that of the error it raises.

    `typer.Exit` carries the status; KeyboardInterrupt and broken pipes pass, typer knows what to do with them.
    """
    run_steps(lambda: asyncio.run(work), json_output=json_output)


def run_steps(work: Callable[[], int], *, json_output: bool = False) -> None:
    """The same for a command that asks a person in between, when no event loop takes Ctrl-C for itself."""
    try:
        status = work()
    except PhaulError as error:
        status = show_error(error, json_output=json_output)
    except BrokenPipeError:
        raise  # whoever read our output has left: no reason to complain
    except Exception as error:  # noqa: BLE001 # the outermost place: it is shown as a defect, with its own exit status
        status = show_error(defect_of(error), json_output=json_output)
    raise typer.Exit(status)


def show_error(error: PhaulError, *, json_output: bool = False) -> int:
    """Show an error, with its traceback where PHAUL_DEBUG=1; gives its exit status."""
    if os.environ.get(DEBUG_VARIABLE) == "1":
        print_traceback(error.__cause__ or error)
    report_failure(error, json_output=json_output)
    return error.exit_status
