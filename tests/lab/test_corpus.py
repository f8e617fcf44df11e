"""Nothing is found first at the freeze: each awkward program is refused by the check, with its code, or really moves.

The programs of corpus/ are one for each known limit of CRIU, and as many that look alike and move. All run once, some
at a time; each is judged in a test of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from phaul.lab.cluster import Lab

from .conftest import unique_name
from .corpus_runner import Answer, Program, programs, run_all

PROGRAMS = programs()


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest) -> Iterator[dict[str, Answer]]:
    """What became of each program that was asked for."""
    chosen = {item.callspec.id for item in request.session.items if item.path == request.path}  # type: ignore[attr-defined]
    with Lab.up(unique_name("corpus")) as lab:
        yield run_all(lab, [program for program in PROGRAMS if program.name in chosen])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_the_check_is_right(answers: dict[str, Answer], program: Program) -> None:
    answer = answers[program.name]
    if answer.missing:
        pytest.skip(answer.missing)
    assert not answer.started, f"it did not come up: {answer.started}"
    assert not answer.failure, f"the check was silent, and then: {answer.failure}"
    assert program.refused <= answer.codes
    assert bool(program.refused) == bool(answer.codes), f"the check says {sorted(answer.codes)}"
    if program.unseen and not answer.beats_on:
        pytest.xfail(program.unseen)
    assert answer.beats_on, f"it does not live: {answer.log}"
