"""Make docs/errors.md from phaul/errors.py. `python -m tests.generate_errors` writes it.

tests/unit/test_errors.py fails when it differs from what is committed. An error class that one package alone raises
lives there; the table holds those that a person meets by their code, the ones of phaul/errors.py.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from phaul import errors
from phaul.errors import PhaulError, error_classes

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/errors.md"

HEAD = """# Errors

Made from `phaul/errors.py` by `python -m tests.generate_errors`; not edited by hand.

Every error says where the workload runs now and what should be done next. The code is the name that stands in `--json`
and travels between agents; the exit status is what `phaul` exits with.

| code | exit status | gRPC status | the workload | meaning | hint, where none is more exact |
|---|---|---|---|---|---|
"""


def documented() -> list[type[PhaulError]]:
    """The classes of phaul/errors.py by exit status, then by name; 70, a defect, comes last by itself."""
    found = [cls for cls in error_classes().values() if cls.__module__ == errors.__name__ and cls is not PhaulError]
    return sorted(found, key=lambda cls: (cls.exit_status, cls.__name__))


def render() -> str:
    """Give the page."""
    rows = []
    for cls in documented():
        meaning = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        hint = cls.default_hint.replace("|", "\\|")
        rows.append(
            f"| `{cls.__name__}` | {cls.exit_status} | {cls.grpc_status} | {cls.where.value} | {meaning} | {hint} |\n"
        )
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(render())
