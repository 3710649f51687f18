import jax
import jax.numpy as jnp
import pytest

import parafix.core
from parafix.core.jax import fixed_point
from parafix.core.testing.jax import RootFinderContract, ScanContract
from parafix_example.aitken import Aitken
from parafix_example.doubling import DoublingScan


# The suites compare to twelve digits.
jax.config.update("jax_enable_x64", True)


class TestAitken(RootFinderContract):
    # Problems of the zoo that one number for all directions solves.
    solves = ("easy", "symmetric", "tanh", "wide", "doubling", "tree")

    def make(self, rtol, atol):
        return Aitken(rtol, atol)

    def test_one_unknown_is_the_secant_method(self):
        # The slope at the solution is -3: the plain iteration runs away from it.
        solution = fixed_point(lambda y: 2 - y**3, jnp.array(1.5), solver="aitken")
        assert abs(solution.value - 1) < 1e-12
        assert solution.stats["num_steps"] <= 12


class TestDoubling(ScanContract):
    def make(self):
        return DoublingScan()

    def test_depth_is_logarithmic(self):
        a, b = jnp.ones((1000, 2)), jnp.ones((1000, 2))
        solve = jax.make_jaxpr(DoublingScan().solve, static_argnums=3)
        stages = [
            equation
            for equation in solve(a, b, b[0], False).eqns
            if equation.primitive.name == "concatenate"
        ]
        assert len(stages) == 10


@pytest.mark.parametrize(
    ("kind", "name", "target"),
    [("rootfinder", "aitken", Aitken), ("scan", "doubling", DoublingScan)],
)
def test_names(kind, name, target):
    assert parafix.core.get(kind, name, backend="jax") is target
    assert parafix.core.get(kind, f"parafix-example-plugin:{name}", backend="jax")
