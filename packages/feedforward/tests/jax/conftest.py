import itertools

import jax
import pytest
from hypothesis import settings


jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Every new shape compiles, so there is no deadline; the same examples every time.
settings.register_profile("jax", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("jax")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    # Every compiled program holds memory maps, of which a process may have 65,530.
    yield
    jax.clear_caches()


@pytest.fixture
def getkey():
    """A function that returns another key at every call, the same in every run."""
    numbers = itertools.count()
    return lambda: jax.random.key(next(numbers))
