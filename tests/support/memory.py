"""The memory that tests at true sizes may need."""

import gc
import resource

import jax
import pytest

MEMORY = 24e9  # bytes of memory that a machine for these tests needs


@pytest.fixture(autouse=True)
def within_memory():
    """Checks that no test needs more than `MEMORY` at its peak, including the networks of both libraries."""
    gc.collect()
    yield
    jax.clear_caches()
    gc.collect()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MEMORY
