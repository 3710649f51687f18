"""`solve_causal`: the same problem, guess, solver and mode in both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parafix.core.jax as in_jax
import parafix.core.testing.jax as testing_jax
import parafix.core.testing.torch as testing_torch
import parafix.core.torch as in_torch
import parafix.feedforward.jax as feedforward_jax
import parafix.feedforward.torch as feedforward_torch


COUNT = 13
STATS = {
    "num_steps",
    "num_evals",
    "num_linear",
    "residual",
    "converged_prefix",
    "exact_prefix",
}
SOLVERS = {
    "jacobi": ("Jacobi", {}),
    "sequential": ("Sequential", {}),
    "jacobi-gs": ("JacobiGS", {"blocks": 5}),
    "gs-jacobi": ("GSJacobi", {"window": 5}),
    "gs-jacobi in blocks": ("GSJacobi", {"window": 5, "sliding": False}),
    "triangular-anderson": ("TriangularAnderson", {}),
    "triangular-anderson, other options": (
        "TriangularAnderson",
        {"history": 5, "ridge": 1e-6},
    ),
}
MODES = {
    "exact": {},
    "tolerance": {"mode": "tolerance"},
    "budget": {"mode": "budget", "max_steps": 4},
}


def solver_of(core, feedforward, name):
    cls, options = SOLVERS[name]
    module = core if hasattr(core, cls) else feedforward
    return getattr(module, cls)(1e-7, 1e-7, **options)


def by_jax(problem, solver, options):
    """The value, the gradient, the code and the statistics."""
    floats = {k: x for k, x in problem.args.items() if x.dtype == float}

    @jax.jit
    def derive(floats):
        def loss(floats):
            args = {**problem.args, **floats}
            solution = in_jax.solve_causal(
                lambda z: problem.fn(z, args),
                problem.z0,
                solver=solver,
                throw=False,
                **options,
            )
            leaves = jax.tree.leaves(solution.value)
            loss = sum(jnp.sin(2 * x.astype(float)).sum() for x in leaves)
            return loss, solution

        return jax.grad(loss, has_aux=True)(floats)

    gradient, solution = derive(floats)
    return (
        [np.asarray(x) for x in jax.tree.leaves(solution.value)],
        {name: np.asarray(x) for name, x in gradient.items()},
        int(solution.result._value),
        {name: np.asarray(x) for name, x in solution.stats.items()},
    )


def by_torch(problem, solver, options):
    args = {k: x.clone() for k, x in problem.args.items()}
    floats = {k: x.requires_grad_() for k, x in args.items() if x.is_floating_point()}
    solution = in_torch.solve_causal(
        lambda z: problem.fn(z, args),
        problem.z0,
        solver=solver,
        throw=False,
        **options,
    )
    value = solution.value
    leaves = value if isinstance(value, tuple) else (value,)
    loss = sum((2 * x.double()).sin().sum() for x in leaves)
    gradient = torch.autograd.grad(loss, list(floats.values())) if floats else ()
    return (
        [x.detach().numpy()[0] for x in leaves],
        {name: g.numpy()[0] for name, g in zip(floats, gradient, strict=True)},
        int(solution.result[0]),
        {name: x.numpy()[0] for name, x in solution.stats.items()},
    )


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    ("problem", "mode"),
    [("network", "exact"), ("network", "budget"), ("chain", "tolerance")],
)
def test_values_gradients_and_sweeps(problem, name, mode):
    # On the way, Anderson's iterates are as good as the ridge of its equations.
    rough = "anderson" in name and mode != "exact"
    assert_same(problem, name, MODES[mode], 1e-7 if rough else 1e-12)


@pytest.mark.parametrize("name", ["jacobi", "jacobi-gs", "gs-jacobi"])
def test_integers(name):
    assert_same("tokens", name, {})


@pytest.mark.parametrize("name", ["jacobi", "triangular-anderson"])
@pytest.mark.parametrize("problem", ["tree", "overflow"])
def test_trees_and_overflows(problem, name):
    # One leaf of the tree is of single precision.
    assert_same(problem, name, {}, 1e-6 if problem == "tree" else 1e-12)


def assert_same(problem, name, options, tolerance=1e-12):
    expected = by_jax(
        testing_jax.causal_zoo(problem, 0, COUNT),
        solver_of(in_jax, feedforward_jax, name),
        {**options, "check": False},
    )
    found = by_torch(
        testing_torch.causal_zoo(problem, 0, COUNT),
        solver_of(in_torch, feedforward_torch, name),
        {**options, "check": False},
    )
    for x, y in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(x, y, tolerance, tolerance)
    assert set(found[1]) == set(expected[1])
    for key, g in expected[1].items():
        unit = max(1.0, float(abs(g).max()))
        np.testing.assert_allclose(found[1][key], g, 0, 100 * tolerance * unit)
    assert found[2] == expected[2]
    assert set(found[3]) == set(expected[3]) == STATS
    # When the last bit of a product settles is a matter of how it is summed.
    apart = 1 if problem == "network" else 0
    for key in STATS - {"residual"}:
        np.testing.assert_allclose(
            found[3][key], expected[3][key], 0, apart, err_msg=key
        )
    np.testing.assert_allclose(
        found[3]["residual"], expected[3]["residual"], 1e-4, 10 * tolerance / 1e-7
    )


def test_zoos():
    for name in testing_jax.causal_zoo_names():
        ours, theirs = (
            module.causal_zoo(name, 3, COUNT) for module in (testing_jax, testing_torch)
        )
        assert set(ours.args) == set(theirs.args)
        for key, x in ours.args.items():
            np.testing.assert_array_equal(x, theirs.args[key][0], key)
        pairs = zip(
            jax.tree.leaves(ours.solution),
            jax.tree.leaves(theirs.solution),
            strict=True,
        )
        for x, y in pairs:
            np.testing.assert_array_equal(x, y[0])
        assert (ours.depth, ours.reach) == (theirs.depth, theirs.reach)


def test_messages():
    problems = [
        module.causal_zoo("network", 0, COUNT)
        for module in (testing_jax, testing_torch)
    ]
    noise = problems[0].args["noise"].at[7, 1].set(jnp.nan)
    spoiled = [
        {**problems[0].args, "noise": noise},
        {**problems[1].args, "noise": torch.as_tensor(np.array(noise))[None]},
    ]
    for options in ({}, {"max_steps": 3}):
        sentences = [
            module.solve_causal(
                lambda z, p=p, args=args: p.fn(z, args), p.z0, throw=False, **options
            ).message(*index)
            for module, p, args, index in zip(
                (in_jax, in_torch), problems, spoiled, ((), (0,)), strict=True
            )
        ]
        assert sentences[0] == sentences[1]
        assert ("First bad position: 7" in sentences[0]) == (not options)
