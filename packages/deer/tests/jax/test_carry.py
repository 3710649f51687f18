"""What is read off a carry and a step before anything is solved."""

import jax
import jax.numpy as jnp
import pytest

from parafix.core.testing.jax import assert_identical
from parafix.deer.jax._carry import inspect, Layout


def layout_of(carry):
    return Layout.of(jax.eval_shape(lambda: carry))


CARRIES = {
    "scalar": jnp.array(0.5),
    "tree": {"a": jnp.arange(6.0).reshape(2, 3), "b": [jnp.ones(1), None]},
    "integers": (jnp.arange(3), jnp.array(0.5), jnp.array([True])),
    "complex": {"z": jnp.array([[1 + 2j, 3 - 1j]]), "h": jnp.array(2.0)},
    "keys": (jax.random.key(0), jax.random.split(jax.random.key(1), 3), jnp.ones(2)),
    "legacy keys": (jax.random.PRNGKey(0), jnp.ones(2)),
    "empty": (jnp.zeros((0, 2)), jnp.ones(2)),
    "nothing": (),
    "half": (jnp.array([0.1, 3], jnp.float16), jnp.array([2.5], jnp.bfloat16)),
}


@pytest.mark.parametrize("name", CARRIES)
def test_split_and_join_are_inverse(name):
    carry = CARRIES[name]
    layout = layout_of(carry)
    state, drivers = layout.split(carry)
    assert state.shape == (layout.size,)
    assert state.dtype == layout.dtype
    assert_identical(layout.join(state, drivers), carry)


def test_states_are_wide_enough_for_every_leaf():
    assert layout_of(CARRIES["half"]).dtype == jnp.float32
    assert layout_of((jnp.ones(1, jnp.float32), jnp.ones(1))).dtype == jnp.float64
    assert layout_of(jnp.ones(1, jnp.complex64)).dtype == jnp.float32
    assert layout_of(jnp.ones(1, complex)).dtype == jnp.float64


def test_rounding_is_that_of_each_leaf():
    found = {leaf.eps for leaf in layout_of(CARRIES["half"]).leaves}
    dtypes = {x.dtype for x in jax.tree.leaves(CARRIES["half"])}
    assert found == {float(jnp.finfo(dtype).eps) for dtype in dtypes}


def test_a_complex_number_counts_twice():
    layout = layout_of(CARRIES["complex"])
    assert layout.size == 5
    sizes = {leaf.name: leaf.size for leaf in layout.leaves}
    assert sizes == {"carry['h']": 1, "carry['z']": 4}


def test_leaves_are_called_by_their_paths():
    assert layout_of(jnp.array(1.0)).names == ("carry",)
    assert layout_of(CARRIES["tree"]).names == ("carry['a']", "carry['b'][0]")


def tainted(f, carry, x=None):
    layout = layout_of(carry)
    return inspect(f, layout, carry, x).tainted


class TestTaint:
    """Which integers depend on floats, however the dependence is hidden."""

    CARRY = {"h": jnp.array(0.5), "n": jnp.array(1)}

    @pytest.mark.parametrize(
        "hidden",
        [
            lambda n, h: n + (h > 0).astype(int),
            lambda n, h: jnp.where(h > 0, n, 2),
            lambda n, h: jax.lax.cond(h > 0, lambda: n, lambda: n + 1),
            lambda n, h: jax.jit(lambda n, h: n + h.astype(int))(n, h),
            lambda n, h: jax.lax.fori_loop(0, h.astype(int), lambda i, n: n + i, n),
            lambda n, h: jax.lax.scan(
                lambda c, _: ((c[0] + c[1].astype(int), c[1]), None), (n, h), length=2
            )[0][0],
            lambda n, h: jnp.argmax(jnp.stack([h, -h])),
            lambda n, h: jax.lax.stop_gradient(h).astype(int),
        ],
        ids=["add", "where", "cond", "jit", "loop", "scan", "argmax", "stopped"],
    )
    def test_is_found(self, hidden):
        def f(carry, x):
            h, n = carry["h"], carry["n"]
            return {"h": 0.5 * h, "n": hidden(n, h)}, None

        assert tainted(f, self.CARRY) == (("carry['n']", "carry['h']"),)

    def test_is_not_imagined(self):
        @jax.jit
        def both(h, n):
            return jnp.sin(h) + n, n + 1

        def f(carry, x):
            h, n = both(carry["h"], carry["n"])
            h, n = jax.lax.cond(
                n > 3, lambda h, n: (h, n), lambda h, n: (2 * h, n + 1), h, n
            )
            return {"h": h, "n": n}, None

        assert tainted(f, self.CARRY) == ()

    def test_inputs_do_not_count(self):
        def f(carry, x):
            return {"h": carry["h"] + x, "n": carry["n"] + (x > 0).astype(int)}, None

        assert tainted(f, self.CARRY, jnp.array(0.1)) == ()


def test_outputs_that_are_the_new_carry_are_found():
    def f(carry, x):
        a, b = carry
        new = (jnp.sin(a), b + 1)
        return new, {"new": new[0], "old": a, "count": new[1], "other": a + 1}

    carry = (jnp.array(0.5), jnp.array(1))
    body = inspect(f, layout_of(carry), carry, None)
    # In the order of keys: count, new, old, other.
    assert body.aliases == (1, 0, None, None)


def test_an_output_that_is_a_constant_is_no_carry():
    carry = jnp.array(0.5)
    body = inspect(lambda h, x: (h, 3.0), layout_of(carry), carry, None)
    assert body.aliases == (None,)
