"""When the destination lets a copy run before its pages are loaded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phaul.migration.lazy import FEATURE, helps
from phaul.units import GIB, MIB


def test_a_small_workload_is_loaded_before_it_runs() -> None:
    assert not helps(16 * MIB, (FEATURE,))
    assert helps(256 * MIB, (FEATURE,))
    assert helps(64 * GIB, (FEATURE, "mem_track"))


@given(st.integers(0, 1 << 50))
def test_never_without_the_feature(memory_bytes: int) -> None:
    assert not helps(memory_bytes, ("mem_track",))


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_more_memory_is_never_a_reason_against(memory_bytes: int, more_bytes: int) -> None:
    assert helps(memory_bytes + more_bytes, (FEATURE,)) >= helps(memory_bytes, (FEATURE,))
