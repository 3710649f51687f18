"""The page for users of the research code: its example runs, and its names exist."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import parafix.core.jax
import parafix.deer.jax
from parafix.core.jax import affine_scan, root_find
from parafix.core.testing.jax import assert_close


PAGE = Path(__file__).parents[4] / "docs" / "porting.md"
BLOCK = re.compile(r'^```python title="after.py"\n(.*?)^```$', re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="this is not a checkout")


def test_the_example():
    (code,) = BLOCK.findall(PAGE.read_text("utf-8"))
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["success"]

    def step(y, x):
        y = names["cell"](y, x, names["params"])
        return y, y

    assert_close(names["ys"], lax.scan(step, names["y0"], names["xs"])[1], 1e-11)
    assert np.isfinite(names["gradient"]).all()


def test_names():
    text = PAGE.read_text("utf-8")
    for name in ("seq1d", "solve_ivp", "solve_idae", "multistep"):
        assert f"`{name}(f, " in text
        assert name in parafix.deer.jax.__all__
    for name in re.findall(r"`parafix\.core\.jax\.(\w+)", text):
        assert name in parafix.core.jax.__all__


def test_what_replaces_the_smaller_functions():
    y = root_find(lambda y, a: y**2 - a, jnp.ones(2), jnp.array([2.0, 3.0])).value
    assert_close(y, jnp.sqrt(jnp.array([2.0, 3.0])), 1e-12)
    mats, vecs = jnp.full((3, 1, 1), 2.0), jnp.ones((3, 1))
    ys = affine_scan(mats, vecs, jnp.ones(1))
    assert_close(ys, jnp.array([[3.0], [7.0], [15.0]]), 1e-13)
