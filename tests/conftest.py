"""What all tests share: how hard hypothesis searches, and that what it finds is the same everywhere.

The default profile derives its examples from the test alone, so that a run that was green stays green; `make test`
and CI never fail by chance. HYPOTHESIS_PROFILE=search looks further, with other examples each time.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Two cores are shared by several runs: how long one example takes says nothing.
SLOW_MACHINE = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)

settings.register_profile(
    "default", deadline=None, derandomize=True, database=None, max_examples=40, suppress_health_check=SLOW_MACHINE
)
settings.register_profile("search", deadline=None, max_examples=1000, suppress_health_check=SLOW_MACHINE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
