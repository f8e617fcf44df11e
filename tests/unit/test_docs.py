"""The documentation against the code: links lead somewhere, commands parse, tables say what the code says."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from phaul.cli.main import app
from phaul.config import AgentConfig
from phaul.errors import PhaulError, error_classes
from phaul.migration.check_report import GROUPS
from phaul.migration.file_rules import WARNINGS
from phaul.rpc.v1 import agent_pb2

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "vagrant").rglob("*.md")])
CLI_PAGE = ROOT / "docs/cli.md"
GUIDE = ROOT / "docs/guide.md"

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SUBSTITUTION = re.compile(r"\$\([^()]*\)")  # a shell's $(...): any PID will do
# What typer raises when it cannot parse; it exports only the class below it.
UsageError: Any = typer.BadParameter.__base__
END_OF_COMMAND = {"|", ";", "&&", "||", "&"}


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """A page without its code."""
    return INLINE_CODE.sub("", FENCED.sub("", path.read_text()))


def anchors(path: Path) -> set[str]:
    """What can stand behind # in a link to a page: GitHub's names of its headings."""
    text = FENCED.sub("", path.read_text())
    headings = (line.lstrip("#").strip().lower() for line in text.splitlines() if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def commands_in(text: str) -> Iterator[list[str]]:
    """Every `phaul` and what is typed after it, also inside quotes (`sh -c '...'`) and behind `lab exec`."""
    tokens = shlex.split(text, comments=True)
    for place, token in enumerate(tokens):
        if token == "phaul":
            rest = tokens[place + 1 :]
            ends = [index for index, word in enumerate(rest) if word in END_OF_COMMAND]
            yield rest[: ends[0]] if ends else rest
        elif re.search(r"\bphaul ", token):
            yield from commands_in(token)


def shell_lines(path: Path) -> Iterator[str]:
    """The lines of a page's shell blocks, with substitutions made."""
    for language, block in FENCED.findall(path.read_text()):
        if language == "sh":
            yield from (SUBSTITUTION.sub("4711", line) for line in block.splitlines())


def parse(words: list[str]) -> None:
    """Let typer parse a command without running it; raises `UsageError` where it does not."""
    # Typer has its own copy of click's classes in newer versions, and click's in older ones.
    command: Any = typer.main.get_command(app)
    context: Any = command.make_context("phaul", list(words))
    while hasattr(command, "resolve_command"):
        # The context of a group holds the words that it has not used.
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, context)


def rows(path: Path) -> Iterator[list[str]]:
    """The cells of every table row of a page."""
    for line in path.read_text().splitlines():
        if line.startswith("|") and not line.startswith("|--"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def problem_codes() -> set[str]:
    """Every code that preflight can give, as it stands in the source."""
    codes: set[str] = set()
    for path in (ROOT / "phaul").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
                codes |= {str(each.value) for each in node.args[:1] if isinstance(each, ast.Constant)}
        if path.name == "file_rules.py":  # makes its problems in one place, and their codes in another
            words = [each.value for each in ast.walk(tree) if isinstance(each, ast.Constant)]
            codes |= {word for word in words if isinstance(word, str) and re.fullmatch(r"file_[a-z_]+", word)}
            codes |= set(WARNINGS)
    return codes


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    broken: list[str] = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.is_relative_to(ROOT) or not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_documented_commands_parse(page: Path) -> None:
    wrong: list[str] = []
    for line in shell_lines(page):
        for words in commands_in(line):
            try:
                parse(words)
            except typer.Exit:
                continue  # --version and --help end it themselves
            except UsageError as error:
                wrong.append(f"phaul {shlex.join(words)}: {error.format_message()}")
    assert not wrong


@pytest.mark.parametrize("words", [["migrat", "1"], ["migrate", "1", "--too", "b"], ["migrate", "x", "--to", "b"]])
def test_the_parser_of_this_test_refuses_what_is_wrong(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(words)


def test_commands_are_found_where_they_are_hidden() -> None:
    found = list(commands_in("phaul lab exec a -- sh -c 'phaul migrate 1 --to b | tail; phaul status'  # phaul x"))
    assert found[1:] == [["migrate", "1", "--to", "b"], ["status"]]
    assert found[0][:3] == ["lab", "exec", "a"]


def test_the_pages_hold_commands_at_all() -> None:
    assert sum(len(list(commands_in(line))) for page in PAGES for line in shell_lines(page)) > 30


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_make_targets_exist(page: Path) -> None:
    code = "\n".join([*INLINE_CODE.findall(page.read_text()), *shell_lines(page)])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?m)^`?make ([a-z-]+)", code)) <= targets


def test_exit_statuses_are_those_of_the_errors() -> None:
    documented = {
        code: int(cells[0])
        for cells in rows(CLI_PAGE)
        if len(cells) == 3 and re.fullmatch(r"\d+", cells[0])
        for code in re.findall(r"`(\w+Error)`", cells[2])
    }
    classes = {name: cls for name, cls in error_classes().items() if cls.__module__ == PhaulError.__module__}
    assert documented == {name: cls.exit_status for name, cls in classes.items() if cls is not PhaulError}


def test_every_reason_to_refuse_is_in_the_guide_under_its_heading() -> None:
    documented: dict[str, set[str]] = {}
    heading = ""
    for line in GUIDE.read_text().splitlines():
        heading = line.removeprefix("### ") if line.startswith("### ") else heading
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            documented.setdefault(heading, set()).update(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", cells[0]))
    assert documented == {group: set(codes) for group, codes in GROUPS.items()}


def test_every_code_that_is_given_has_a_heading() -> None:
    assert problem_codes() <= {code for codes in GROUPS.values() for code in codes}


def test_settings_of_the_agent_are_documented_with_their_defaults() -> None:
    documented = {
        match[1].lower(): cells[2].strip("`")
        for cells in rows(CLI_PAGE)
        if len(cells) == 4 and (match := re.match(r"`PHAUL_(\w+)", cells[1]))
    }
    fields = AgentConfig.model_fields
    assert documented == {
        name: "off" if field.default is False else str(field.default) for name, field in fields.items()
    }


def test_events_and_the_report_are_documented_field_by_field() -> None:
    text = CLI_PAGE.read_text()
    kinds = [field.name for field in agent_pb2.MigrationEvent.DESCRIPTOR.oneofs_by_name["kind"].fields]
    names = {name if name != "finished" else "result" for name in kinds}  # --json calls it the result
    for message in (agent_pb2.Started, agent_pb2.Progress, agent_pb2.MigrationReport):
        names |= {field.name for field in message.DESCRIPTOR.fields}
    assert {name for name in names if f"`{name}`" not in text} == set()
