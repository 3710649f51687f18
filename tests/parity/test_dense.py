"""`fixed_point` and `root_find`: the same function, guess, solver and options."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import func

import parafix.core.jax as in_jax
import parafix.core.testing.jax as testing_jax
import parafix.core.testing.torch as testing_torch
import parafix.core.torch as in_torch


SIZE = 8
SEEDS = (0, 1, 2)
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
# What a solve is asked for: its answer is then as right as the comparison needs.
ASKED = {"float32": 1e-6, "float64": 1e-12}
STATS = ("num_steps", "num_evals", "num_linear", "residual")

SOLVERS = {
    "fixed-point": ("FixedPoint", {}),
    "damped": ("FixedPoint", {"damping": 0.2}),
    "anderson": ("Anderson", {}),
    "anderson, other options": (
        "Anderson",
        {"history": 4, "mixing": 0.8, "ridge": 1e-9},
    ),
    "good broyden": ("Broyden", {}),
    "bad broyden": ("Broyden", {"kind": "bad"}),
    "broyden, restarted": ("Broyden", {"memory": 5}),
    "newton": ("Newton", {}),
    "newton, gmres": ("Newton", {"linear_solver": "GMRES"}),
    "newton-krylov": ("NewtonKrylov", {}),
    "newton-krylov, restarted": ("NewtonKrylov", {"restart": 4}),
}
# Those of one list are samples of one batch.
ORDERLY = (("easy", "symmetric", "wide"), ("tanh",))
WITH_ALL = (("easy", "symmetric", "wide", "radius-3"), ("tanh",))
# Where memory that is too short for the problem makes no chaos of it: on "radius-3"
# these wander, for 220 steps at most, and a change of the last bit anywhere changes
# their number.
PROBLEMS = {
    "anderson, other options": ORDERLY,
    "broyden, restarted": ORDERLY,
    "newton-krylov, restarted": ORDERLY,
}


def solver_of(module, name, tolerance):
    cls, options = SOLVERS[name]
    if "linear_solver" in options:
        options = {"linear_solver": module.GMRES()}
    return getattr(module, cls)(tolerance, tolerance, **options)


def pair(names, dtype, seeds=SEEDS):
    """The same samples for both: a problem of JAX to be vmapped, and one of PyTorch."""
    pairs = [(name, seed) for name in names for seed in seeds]
    ours = [testing_jax.zoo(*each, SIZE, jnp.dtype(dtype)) for each in pairs]
    theirs = [testing_torch.zoo(*each, SIZE, getattr(torch, dtype)) for each in pairs]
    ours, theirs = testing_jax.stacked(ours), testing_torch.stacked(theirs)
    for key, x in ours.args.items():
        np.testing.assert_array_equal(x, theirs.args[key])
    np.testing.assert_array_equal(ours.y0, theirs.y0)
    return ours, theirs


@eqx.filter_jit
def by_jax(verb, fn, y0, args, options):
    def one(y0, args):
        return verb(fn, y0, args, throw=False, **options)

    return jax.vmap(one)(y0, args)


def both(verb, name, problems, tolerance, **options):
    """The solutions in JAX and in PyTorch, as `(value, codes, stats)` of NumPy."""
    ours, theirs = problems
    solution = by_jax(
        getattr(in_jax, verb),
        ours.fn,
        ours.y0,
        ours.args,
        {"solver": solver_of(in_jax, name, tolerance), **options},
    )
    other = getattr(in_torch, verb)(
        theirs.fn,
        theirs.y0,
        theirs.args,
        solver=solver_of(in_torch, name, tolerance),
        throw=False,
        **options,
    )
    assert set(solution.stats) == set(other.stats) == set(STATS)
    return (
        (
            np.asarray(solution.value),
            np.asarray(solution.result._value),
            {key: np.asarray(x) for key, x in solution.stats.items()},
        ),
        (
            other.value.detach().numpy(),
            other.result.numpy(),
            {key: x.detach().numpy() for key, x in other.stats.items()},
        ),
    )


def assert_near(actual, expected, tolerance):
    """In units of the largest entry, or of one."""
    actual, expected = map(np.asarray, (actual, expected))
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    unit = max(1.0, float(np.max(abs(expected), initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * unit)


CASES = [
    ("fixed_point", solver, dtype) for solver in SOLVERS for dtype in TOLERANCES
] + [("root_find", solver, "float64") for solver in ("anderson", "newton")]


@pytest.mark.parametrize(("verb", "solver", "dtype"), CASES)
def test_values_and_stats(verb, solver, dtype):
    for names in PROBLEMS.get(solver, WITH_ALL):
        problems = pair(names, dtype)
        if verb == "root_find":
            problems = tuple(problem.as_root() for problem in problems)
        ours, theirs = both(verb, solver, problems, ASKED[dtype])
        # Plain iteration has no answer to the expansive ones, in either.
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert_near(theirs[0], ours[0], TOLERANCES[dtype])
        for _, codes, stats in (ours, theirs):
            np.testing.assert_array_equal(stats["residual"] <= 1, codes == 0)
        if dtype == "float64":
            for key in ("num_steps", "num_evals", "num_linear"):
                np.testing.assert_array_equal(ours[2][key], theirs[2][key], key)


@pytest.mark.parametrize("solver", ["fixed-point", "anderson", "broyden", "newton"])
def test_defaults(solver):
    # The solver by its name, and its tolerances by the dtypes of the leaves.
    for name in ("tree", "mixed-tree"):
        ours, theirs = testing_jax.zoo(name), testing_torch.zoo(name)
        options = {"solver": solver, "throw": False}
        solution = in_jax.fixed_point(ours.fn, ours.y0, ours.args, **options)
        other = in_torch.fixed_point(theirs.fn, theirs.y0, theirs.args, **options)
        assert int(solution.result._value) == int(other.result)
        tolerance = 1e-5 if name == "mixed-tree" else 1e-10
        pairs = zip(jax.tree.leaves(solution.value), other.value, strict=True)
        for x, y in pairs:
            assert_near(y[0], x, tolerance)
        if name == "tree":
            for key in ("num_steps", "num_evals", "num_linear"):
                assert int(solution.stats[key]) == int(other.stats[key])


@pytest.mark.parametrize(
    "solver", ["fixed-point", "anderson", "good broyden", "newton"]
)
def test_failures(solver):
    for names in (("becomes-nan", "nan-at-guess"), ("no-solution",)):
        ours, theirs = both("fixed_point", solver, pair(names, "float64"), 1e-9)
        np.testing.assert_array_equal(ours[1], theirs[1], f"{names}, {solver}")
        assert (ours[1] != 0).all()
        np.testing.assert_array_equal(ours[2]["num_steps"], theirs[2]["num_steps"])
        # Where there is nothing to find, iterates wander without end, and a change of
        # the last bit anywhere leads elsewhere.
        if names != ("no-solution",):
            assert_near(theirs[0], ours[0], 1e-10)
    problems = pair(("tanh",), "float64")
    ours, theirs = both("fixed_point", solver, problems, 1e-9, max_steps=2)
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_array_equal(ours[2]["num_steps"], theirs[2]["num_steps"])
    assert_near(theirs[0], ours[0], 1e-10)
    np.testing.assert_allclose(theirs[2]["residual"], ours[2]["residual"], rtol=1e-8)


def test_sentences():
    def message(module, value):
        solution = module.fixed_point(
            lambda y: 3 * y + 1, value, solver="fixed-point", throw=False
        )
        return solution.message()

    assert message(in_jax, jnp.ones(2)) == message(in_torch, torch.ones(1, 2))
    assert "without bound" in message(in_jax, jnp.ones(2))


def derivatives_in_jax(problem, options, tangents, second):
    weights = jnp.cos(jnp.arange(SIZE, dtype=problem.y0.dtype))

    @jax.jit
    @jax.vmap
    def derive(y0, args, tangents):
        def solve(args):
            return in_jax.fixed_point(problem.fn, y0, args, **options).value

        gradient = jax.grad(lambda args: weights @ jnp.sin(solve(args)))
        push = lambda f: jax.jvp(f, (args,), (tangents,))[1]
        return gradient(args), push(solve), push(gradient) if second else ()

    return derive(problem.y0, problem.args, jax.tree.map(jnp.asarray, tangents))


def derivatives_in_torch(problem, options, tangents, second):
    weights = torch.arange(SIZE, dtype=problem.y0.dtype).cos()
    args, tangents = problem.args, jax.tree.map(torch.as_tensor, tangents)

    def solve(args):
        return in_torch.fixed_point(problem.fn, problem.y0, args, **options).value

    gradient = func.grad(lambda args: (weights * solve(args).sin()).sum())
    push = lambda f: func.jvp(f, (args,), (tangents,))[1]
    return gradient(args), push(solve), push(gradient) if second else ()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("adjoint", ["implicit", "one-step", "phantom", "unrolled"])
def test_derivatives(adjoint, dtype):
    """Gradient and tangent by each adjoint, and in float64 the gradient's tangent."""
    double = dtype == "float64"
    tolerances = {"rtol": ASKED[dtype], "atol": ASKED[dtype]}
    for names, solver in ((("tanh",), "anderson"), (("easy", "symmetric"), "newton")):
        options = {"adjoint": adjoint, "solver": solver, **tolerances}
        ours, theirs = pair(names, dtype)
        random = np.random.default_rng(3)
        tangents = {
            key: (0.1 * random.normal(size=x.shape)).astype(dtype)
            for key, x in ours.args.items()
        }
        found, expected = (
            jax.tree.leaves(derive(problem, options, tangents, double))
            for derive, problem in (
                (derivatives_in_torch, theirs),
                (derivatives_in_jax, ours),
            )
        )
        for x, y in zip(found, expected, strict=True):
            assert_near(x.detach(), y, TOLERANCES[dtype])
        if not double:
            break
