"""`solve_chain`: the same step, weights, inputs and options in both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parafix.core.jax as in_jax
import parafix.core.torch as in_torch
import parafix.deer.jax as deer_jax
import parafix.deer.torch as deer_torch


LENGTH, SAMPLES, SIZE, INPUTS = 40, 3, 4, 2
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
COUNTS = (
    "num_steps",
    "num_evals",
    "num_linear",
    "converged_prefix",
    "sequential_from",
)
STATS = {*COUNTS, "residual", "error_estimate", "lyapunov_exponent"}


def numbers(dtype):
    random = np.random.default_rng(5)
    shapes = {
        "w": (SIZE, SIZE),
        "u": (INPUTS, SIZE),
        "init": (SAMPLES, SIZE),
        "xs": (LENGTH, SAMPLES, INPUTS),
    }
    scale = {"w": 0.5, "u": 0.7}
    return {
        name: (scale.get(name, 1.0) * random.normal(size=shape)).astype(dtype)
        for name, shape in shapes.items()
    }


# Written once: for one sample in JAX, for a batch in PyTorch.
def tanh(ops, arrays, z, x):
    return ops.tanh(z @ arrays["w"] + x @ arrays["u"]) + 0.2 * z


def solver_of(module, name, **options):
    """An object with what only objects have, or a name."""
    if name == "DEER":
        deer = deer_jax if module is in_jax else deer_torch
        return deer.DEER(1e-11, 1e-11, **options)
    return name


def solve_in_jax(step, arrays, about=(), **options):
    """A solution whose leaves have the samples first."""

    def one(init, xs):
        problem = in_jax.Chain(
            lambda z, x: step(jnp, arrays, z, x), init, xs, len(xs), **dict(about)
        )
        return in_jax.solve_chain(problem, throw=False, **options)

    return jax.vmap(one, (0, 1))(arrays["init"], arrays["xs"])


def solve_in_torch(step, arrays, about=(), **options):
    problem = in_torch.Chain(
        lambda z, x: step(torch, arrays, z, x),
        arrays["init"],
        arrays["xs"],
        len(arrays["xs"]),
        **dict(about),
    )
    return in_torch.solve_chain(problem, throw=False, growth=True, **options)


def by_jax(step, arrays, **options):
    """The states, the gradient, codes and statistics."""

    @jax.jit
    def derive(arrays):
        def loss(arrays):
            solution = solve_in_jax(step, arrays, **options)
            return jnp.sin(2 * solution.value).sum(), solution

        return jax.grad(loss, has_aux=True)(arrays)

    gradient, solution = derive({name: jnp.asarray(x) for name, x in arrays.items()})
    return (
        np.asarray(solution.value).swapaxes(0, 1),
        {name: np.asarray(x) for name, x in gradient.items()},
        np.asarray(solution.result._value),
        {name: np.asarray(x) for name, x in solution.stats.items()},
    )


def by_torch(step, arrays, **options):
    arrays = {name: torch.tensor(x, requires_grad=True) for name, x in arrays.items()}
    solution = solve_in_torch(step, arrays, **options)
    loss = (2 * solution.value).sin().sum()
    gradient = torch.autograd.grad(loss, list(arrays.values()))
    return (
        solution.value.detach().numpy(),
        {name: g.numpy() for name, g in zip(arrays, gradient, strict=True)},
        solution.result.numpy(),
        {name: x.numpy() for name, x in solution.stats.items()},
    )


def assert_near(found, expected, tolerance, name=""):
    """In units of the largest entry, or of one."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    unit = max(1.0, float(np.max(abs(expected), initial=0)))
    np.testing.assert_allclose(found, expected, 0, tolerance * unit, err_msg=name)


def assert_same(found, expected, dtype):
    tolerance = TOLERANCES[dtype]
    assert_near(found[0], expected[0], tolerance)
    for name, g in expected[1].items():
        assert_near(found[1][name], g, tolerance, name)
    np.testing.assert_array_equal(found[2], expected[2])
    assert set(found[3]) == set(expected[3]) == STATS
    if dtype == "float64":
        for name in COUNTS:
            np.testing.assert_array_equal(found[3][name], expected[3][name], name)


@pytest.mark.parametrize(
    ("dtype", "solver", "options"),
    [
        ("float64", "jacobi", {}),
        ("float64", "DEER", {}),
        ("float64", "sequential", {}),
        ("float64", "deer", {"window": 15}),
        ("float64", "deer", {"max_steps": 3}),
        ("float32", "deer", {}),
    ],
    ids=str,
)
def test_values_gradients_and_sweeps(dtype, solver, options):
    arrays = numbers(dtype)
    expected, found = (
        by(tanh, arrays, solver=solver_of(module, solver), **options)
        for by, module in ((by_jax, in_jax), (by_torch, in_torch))
    )
    assert_same(found, expected, dtype)
    assert (expected[2] != 0).all() == ("max_steps" in options)


@pytest.mark.parametrize(
    "options",
    [{"chunk": 7}, {"scan": "blocked"}],
    ids=str,
)
def test_options_of_an_object(options):
    arrays = numbers("float64")
    expected, found = (
        by(tanh, arrays, solver=solver_of(module, "DEER", **options))
        for by, module in ((by_jax, in_jax), (by_torch, in_torch))
    )
    assert_same(found, expected, "float64")


@pytest.mark.parametrize("adjoint", ["one-step", "unrolled"])
def test_adjoints_of_dense_problems_are_refused(adjoint):
    arrays = numbers("float64")
    sentences = []
    for by in (by_jax, by_torch):
        with pytest.raises(TypeError, match="dense problems") as error:
            by(tanh, arrays, solver="deer", adjoint=adjoint)
        sentences.append(str(error.value).partition("\n")[0])
    assert sentences[0] == sentences[1]


def test_guess_and_tolerances_for_each_entry():
    arrays = numbers("float64")
    random = np.random.default_rng(1)
    guess = random.normal(size=(LENGTH, SAMPLES, SIZE))
    # Entries that are not finite count as zero.
    guess[3, 1, 2] = np.nan
    rtol = np.array([1e-3, 1e-6, 1e-9, 1e-12])
    one = {k: arrays[k][:1] if k == "init" else arrays[k] for k in arrays}
    one["xs"] = arrays["xs"][:, :1]
    expected = by_jax(
        tanh,
        one,
        solver="deer",
        guess=jnp.asarray(guess[:, 1]),
        rtol=jnp.asarray(rtol),
        atol=1e-9,
    )
    found = by_torch(
        tanh,
        one,
        solver="deer",
        guess=torch.tensor(guess[:, 1:2]),
        rtol=torch.tensor(rtol),
        atol=1e-9,
    )
    # The answer is as right as was asked for, but both took the same steps to it.
    assert_same(found, expected, "float64")


def spoiled(ops, arrays, z, x):
    return ops.tanh(z) + x[..., :1]


def growing(ops, arrays, z, x):
    return 3 * z + x[..., :1]


def overflowing(ops, arrays, z, x):
    return ops.exp(z)


@pytest.mark.parametrize(
    ("solver", "step", "options"),
    [
        ("deer", spoiled, {}),
        ("deer", spoiled, {"max_steps": 3}),
        ("deer", spoiled, {"window": 15}),
        ("deer", growing, {}),
        ("deer", overflowing, {}),
        ("jacobi", spoiled, {"max_steps": 3}),
        ("jacobi", spoiled, {"window": 15}),
        ("jacobi", overflowing, {}),
        ("sequential", spoiled, {}),
        ("sequential", growing, {}),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_failures(solver, step, options):
    arrays = numbers("float64")
    if step is spoiled:
        arrays["xs"][21, 1] = np.nan
    eps = 2.0**-52
    about = {"offset": 100, "stride": -2}
    leaves = (("first", 1), ("rest", 3))
    solution = jax.jit(
        lambda arrays: solve_in_jax(
            step,
            arrays,
            {**about, "leaves": tuple(in_jax.Leaf(*x, eps) for x in leaves)},
            solver=solver,
            **options,
        )
    )({name: jnp.asarray(x) for name, x in arrays.items()})
    other = solve_in_torch(
        step,
        {name: torch.tensor(x) for name, x in arrays.items()},
        {**about, "leaves": tuple(in_torch.Leaf(*x, eps) for x in leaves)},
        solver=solver,
        **options,
    )
    np.testing.assert_array_equal(other.result, np.asarray(solution.result._value))
    assert set(solution.stats) == set(other.stats) == STATS
    for name in COUNTS:
        np.testing.assert_array_equal(other.stats[name], solution.stats[name], name)
    sentences = [
        jax.tree.map(lambda x, k=k: x[k], solution).message() for k in range(SAMPLES)
    ]
    assert [other.message(k) for k in range(SAMPLES)] == sentences
    if step is spoiled:
        # 100 - 2 * 21, and the neighbours' sentences are of their own.
        assert "position: 58, leaf first" in sentences[1] or "max_steps" in options
        assert sentences[0] == "" or "max_steps" in options
    np.testing.assert_allclose(
        other.value, np.asarray(solution.value).swapaxes(0, 1), 1e-10, 1e-10
    )


def test_assess():
    arrays = numbers("float64")
    z = np.random.default_rng(2).normal(size=(LENGTH, 1, SIZE))
    z[30] = np.inf
    problems = (
        in_jax.Chain(
            lambda z, x: tanh(jnp, arrays, z, x),
            jnp.asarray(arrays["init"][0]),
            jnp.asarray(arrays["xs"][:, 0]),
            LENGTH,
        ),
        in_torch.Chain(
            lambda z, x: tanh(
                torch, {k: torch.tensor(v) for k, v in arrays.items()}, z, x
            ),
            torch.tensor(arrays["init"][:1]),
            torch.tensor(arrays["xs"][:, :1]),
            LENGTH,
        ),
    )
    ours = in_jax.assess(problems[0], jnp.asarray(z[:, 0]), rtol=0.1, atol=0.1)
    theirs = in_torch.assess(problems[1], torch.tensor(z), rtol=0.1, atol=0.1)
    assert int(ours.result._value) == int(theirs.result[0])
    assert ours.message() == theirs.message()
    assert set(ours.stats) == set(theirs.stats) == STATS
    for name, x in ours.stats.items():
        np.testing.assert_allclose(theirs.stats[name][0], x, 1e-10, err_msg=name)
