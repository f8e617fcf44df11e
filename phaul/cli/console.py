"""Where output goes and with which characters. Used by every module of `cli` that prints.

Standard output carries what was asked for, standard error what went wrong. Nothing from outside (a command's name, a
log line) is ever printed without `clean` or `clean_block`: a process can call itself an escape sequence.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from dataclasses import dataclass

from rich.console import Console

STAND_IN = "phaul_stand_in"  # our error handler of encoders
PIPE_COLUMNS = 200  # a file or a pipe has no edge: wide enough for a table not to be cut


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The few characters that are not letters."""

    done: str
    failed: str
    warning: str
    pending: str
    arrow: str
    back_arrow: str
    hint: str
    bar: str
    dot: str
    ellipsis: str
    spinner: tuple[str, ...]


UNICODE = Glyphs("✓", "✗", "!", "·", "→", "←", "→", "█", " · ", "…", tuple("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"))
ASCII = Glyphs("+", "x", "!", ".", "->", "<-", "->", "#", ", ", "...", tuple("|/-\\"))


def make_console(*, error: bool = False) -> Console:
    """Make the console for standard output or standard error."""
    stream = sys.stderr if error else sys.stdout
    if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
        stream.reconfigure(errors=STAND_IN)
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return Console(stderr=error, highlight=False, markup=False, emoji=False, width=width)


def glyphs_for(console: Console) -> Glyphs:
    """The characters that this console can show."""
    return ASCII if console.options.ascii_only else UNICODE


def can_redraw(console: Console) -> bool:
    """Whether a display that paints over itself works here. Colour may be forced on a pipe, redrawing may not."""
    return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal


def clean(text: str) -> str:
    """Give `text` on one line, without characters that steer a terminal or turn the direction of writing."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in _UNPRINTABLE else char for char in text)


def clean_block(text: str) -> str:
    """Give a text of several lines, each as `clean` does; tabs become four spaces."""
    return "\n".join(clean(line.replace("\t", "    ")) for line in text.splitlines())


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """Where an encoding lacks a character (the µ of a unit, a name), print another rather than fail."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_STAND_INS.get(char, "?") for char in error.object[error.start : error.end]), error.end


_STAND_INS = {"µ": "u", "…": ".", "✓": "+", "✗": "x", "→": ">", "←": "<", "·": "-", "\N{REPLACEMENT CHARACTER}": "?"}
codecs.register_error(STAND_IN, _stand_in)

_UNPRINTABLE = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})  # Co: bytes of a name that are no UTF-8 (agent.messages)
