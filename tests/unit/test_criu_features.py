"""Which CRIU works on which kernel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.criu.features import CriuFeatures, kernel_version, probe, version_problems

VERSIONS = st.tuples(st.integers(0, 9), st.integers(0, 30), st.integers(0, 9))
KERNELS = st.tuples(st.integers(3, 9), st.integers(0, 30))


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.18.5", (6, 18)),
        ("6.12.48+deb13-cloud-amd64", (6, 12)),
        ("5.15-custom", (5, 15)),
        ("6.1.0-rc3", (6, 1)),
        ("next", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_the_kernel_is_read_off_its_release(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


@pytest.mark.parametrize(
    ("version", "kernel", "works"),
    [
        ((3, 17, 1), "5.10.0", False),
        ((4, 0, 0), "6.12.1", True),
        ((4, 0, 0), "6.13.0", False),
        ((4, 1, 0), "6.15.9", True),
        ((4, 1, 1), "6.16.0", False),
        ((4, 1, 1), "6.18.5", False),
        ((4, 2, 0), "6.16.0", True),
        ((4, 2, 1), "6.18.5", True),
        ((5, 0, 0), "7.0.0", True),
        ((4, 10, 0), "6.18.5", True),
    ],
)
def test_an_old_criu_does_not_work_on_a_new_kernel(version: tuple[int, int, int], kernel: str, works: bool) -> None:
    problems = version_problems(version, kernel)
    assert (problems == ()) is works
    for problem in problems:
        assert problem.code == "criu_too_old"
        assert ".".join(map(str, version)) in problem.message
        assert "4.2" in problem.hint


@given(VERSIONS, VERSIONS, KERNELS, KERNELS)
def test_a_newer_criu_and_an_older_kernel_never_make_it_worse(
    one: tuple[int, int, int], other: tuple[int, int, int], first: tuple[int, int], second: tuple[int, int]
) -> None:
    old, new = sorted((one, other))
    old_kernel, new_kernel = (f"{major}.{minor}.1" for major, minor in sorted((first, second)))
    if not version_problems(old, new_kernel):
        assert not version_problems(new, old_kernel)


@pytest.mark.parametrize(("version", "text"), [((4, 2, 1), "4.2.1"), ((4, 2, 0), "4.2"), ((0, 0, 0), "")])
def test_a_version_is_written_as_people_do(version: tuple[int, int, int], text: str) -> None:
    assert CriuFeatures("/usr/sbin/criu", version, (), ()).version_text == text


async def test_no_criu_is_a_problem_that_says_what_to_install() -> None:
    found = await probe("no-such-criu")
    (problem,) = found.problems
    assert problem.code == "criu_missing"
    assert "no-such-criu" in problem.message
    assert "Install CRIU" in problem.hint
