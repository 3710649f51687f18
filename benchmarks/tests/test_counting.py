import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from benchmarks.counting import counted, Counts, run_counted


def f(y):
    return jnp.tanh(counted(y))


@pytest.mark.parametrize(
    ("function", "counts"),
    [
        (f, Counts(1, 0)),
        (lambda y: f(y) + f(2 * y), Counts(2, 0)),
        (lambda y: jax.jvp(f, (y,), (y,)), Counts(1, 1)),
        (jax.grad(lambda y: f(y).sum()), Counts(1, 1)),
        (jax.jacfwd(f), Counts(1, 3)),
        (jax.jacrev(f), Counts(1, 3)),
        (lambda y: jax.lax.fori_loop(0, 7, lambda _, z: f(z), y), Counts(7, 0)),
        (lambda y: jax.linearize(f, y)[1](y), Counts(1, 1)),
        # The gradient is not part of the answer, only its derivative is.
        (jax.hessian(lambda y: f(y).sum()), Counts(1, 3 + 3)),
        (lambda y: jax.vmap(f)(jnp.stack([y, y])), Counts(2, 0)),
        # Nobody wants the value.
        (lambda y: (f(y), y)[1], Counts(0, 0)),
    ],
)
def test_counts(function, counts):
    y = jnp.array([0.1, 0.2, 0.3])
    assert run_counted(function, y)[1] == counts
    # Once more: the program is compiled, and the counts begin again.
    assert run_counted(function, y)[1] == counts


def test_the_identity():
    tree = {"a": jnp.arange(3.0), "b": jnp.ones(2)}
    found = counted(tree)
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), found, tree))
    y = jnp.array([0.1, 0.2])
    assert (jax.hessian(lambda y: f(y).sum())(y) == jax.hessian(_plain)(y)).all()


def _plain(y):
    return jnp.tanh(y).sum()


def test_a_solver():
    def solve(y):
        solver = optx.Newton(rtol=1e-3, atol=1e-3)
        solution = optx.root_find(lambda z, _: f(z) - 0.5, solver, y)
        return solution.stats["num_steps"]

    steps, counts = run_counted(solve, jnp.zeros(4))
    assert counts == Counts(int(steps), 4 * int(steps))
    assert np.asarray(steps) > 1
