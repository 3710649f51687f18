"""`scan`: the same cells, weights, inputs and options in both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import parafix.deer.jax as in_jax
import parafix.deer.torch as in_torch


LENGTH, SAMPLES, SIZE, INPUTS = 40, 3, 3, 2
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
COUNTS = (
    "num_steps",
    "num_evals",
    "num_linear",
    "converged_prefix",
    "sequential_from",
)
STATS = {*COUNTS, "residual", "error_estimate", "lyapunov_exponent"}


# Each cell is written once: for one sample in JAX, for a batch in PyTorch.
def tanh(ops, weights, h, x):
    h = ops.tanh(h @ weights["w"][0] + x @ weights["u"][0])
    return h, ops.sin(h)


def gru(ops, weights, h, x):
    s = [h @ w for w in (weights["w"][k] for k in range(3))]
    a = [x @ u for u in (weights["u"][k] for k in range(3))]
    reset, update = ops.sigmoid(a[0] + s[0]), ops.sigmoid(a[1] + s[1])
    h = update * h + (1 - update) * ops.tanh(a[2] + reset * s[2])
    return h, h


def lstm(ops, weights, carry, x):
    h, c = carry
    a = [h @ weights["w"][k] + x @ weights["u"][k] for k in range(4)]
    c = ops.sigmoid(a[1]) * c + ops.sigmoid(a[0]) * ops.tanh(a[2])
    h = ops.sigmoid(a[3]) * ops.tanh(c)
    return (h, c), {"h": h, "square": c * c}


CELLS = {"tanh": (tanh, 1), "gru": (gru, 3), "lstm": (lstm, 4)}


class InJAX:
    tanh, sin, exp, where = jnp.tanh, jnp.sin, jnp.exp, jnp.where
    sigmoid = jax.nn.sigmoid


class InTorch:
    tanh, sin, exp, where = torch.tanh, torch.sin, torch.exp, torch.where
    sigmoid = torch.sigmoid


def recurrence(name, dtype):
    """`(step, {"weights", "init", "xs"})`, of NumPy."""
    random = np.random.default_rng(len(name))
    step, gates = CELLS[name]

    def normal(*shape, scale=1.0):
        return (scale * random.normal(size=shape)).astype(dtype)

    init = normal(SAMPLES, SIZE)
    return step, {
        "weights": {
            "w": normal(gates, SIZE, SIZE, scale=0.6),
            "u": normal(gates, INPUTS, SIZE, scale=0.7),
        },
        "init": (init, normal(SAMPLES, SIZE)) if name == "lstm" else init,
        "xs": normal(LENGTH, SAMPLES, INPUTS),
    }


def guess_of(arrays):
    random = np.random.default_rng(8)
    return jax.tree.map(
        lambda x: random.normal(size=(LENGTH, *x.shape)).astype(x.dtype), arrays["init"]
    )


def solve_in_jax(step, arrays, guess=None, **options):
    """Of a batch: `((carry, ys), solution)`, time first."""

    def one(init, xs, guess):
        f = lambda carry, x: step(InJAX, arrays["weights"], carry, x)
        return in_jax.scan(
            f, init, xs, guess=guess, return_solution=True, throw=False, **options
        )

    (carry, ys), solution = jax.vmap(one, (0, 1, 1))(
        arrays["init"], arrays["xs"], guess
    )
    return (carry, jax.tree.map(lambda x: x.swapaxes(0, 1), ys)), solution


def solve_in_torch(step, arrays, **options):
    f = lambda carry, x: step(InTorch, arrays["weights"], carry, x)
    return in_torch.scan(
        f,
        arrays["init"],
        arrays["xs"],
        return_solution=True,
        throw=False,
        **options,
    )


def by_jax(step, arrays, guess=None, **options):
    """The leaves of `(carry, ys)`, those of the gradient, codes and statistics."""

    @jax.jit
    def derive(arrays, guess):
        def loss(arrays):
            out, solution = solve_in_jax(step, arrays, guess, **options)
            loss = sum(jnp.sin(2 * x).sum() for x in jax.tree.leaves(out))
            return loss, (out, solution)

        return jax.grad(loss, has_aux=True)(arrays)

    gradient, (out, solution) = derive(*jax.tree.map(jnp.asarray, (arrays, guess)))
    stats = {name: np.asarray(x) for name, x in solution.stats.items()}
    leaves = [list(map(np.asarray, jax.tree.leaves(x))) for x in (out, gradient)]
    return *leaves, np.asarray(solution.result._value), stats


def by_torch(step, arrays, guess=None, **options):
    arrays = pytree.tree_map(lambda x: torch.tensor(x, requires_grad=True), arrays)
    if guess is not None:
        options["guess"] = pytree.tree_map(torch.tensor, guess)
    out, solution = solve_in_torch(step, arrays, **options)
    # By JAX, which has the keys of a dict in order.
    out, leaves = jax.tree.leaves(out), jax.tree.leaves(arrays)
    loss = sum((2 * x).sin().sum() for x in out)
    gradient = torch.autograd.grad(loss, leaves)
    stats = {name: x.numpy() for name, x in solution.stats.items()}
    values = [x.detach().numpy() for x in out]
    return values, [g.numpy() for g in gradient], solution.result.numpy(), stats


def assert_near(found, expected, tolerance):
    """In units of the largest entry, or of one."""
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        unit = max(1.0, float(np.max(abs(y), initial=0)))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * unit)


def assert_same(step, arrays, dtype, **options):
    expected = by_jax(step, arrays, **options)
    found = by_torch(step, arrays, **options)
    for k in (0, 1):
        assert_near(found[k], expected[k], TOLERANCES[dtype])
    np.testing.assert_array_equal(found[2], expected[2])
    assert set(found[3]) == set(expected[3]) == STATS
    if dtype == "float64":
        for name in COUNTS:
            np.testing.assert_array_equal(found[3][name], expected[3][name], name)
        # Below, it is made of rounding errors, which are each framework's own.
        name = "error_estimate"
        found, expected_estimate = found[3][name], expected[3][name]
        np.testing.assert_allclose(found, expected_estimate, rtol=1e-3, atol=1e-12)
    return expected


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_cells(cell, dtype):
    _, _, codes, stats = assert_same(*recurrence(cell, dtype), dtype, solver="deer")
    assert (codes == 0).all()
    assert (stats["num_steps"] > 2).all()


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("tanh", {"solver": "deer", "window": 16, "reverse": True}),
        ("gru", {"solver": "deer", "reverse": True}),
        ("gru", {"solver": "jacobi"}),
        ("lstm", {"solver": "sequential", "reverse": True}),
        ("gru", {"solver": "deer", "max_steps": 3}),
        ("tanh", {"solver": "jacobi", "max_steps": 5, "reverse": True}),
        ("tanh", {"solver": "deer", "rtol": 1e-3, "atol": 1e-2}),
    ],
    ids=str,
)
def test_options(cell, options):
    _, _, codes, _ = assert_same(*recurrence(cell, "float64"), "float64", **options)
    # Both end with a code, and with the same one.
    assert (codes != 0).any() == ("max_steps" in options)


@pytest.mark.parametrize(
    ("cell", "options"),
    [("lstm", {"solver": "deer"}), ("tanh", {"solver": "jacobi", "reverse": True})],
    ids=str,
)
def test_guess(cell, options):
    step, arrays = recurrence(cell, "float64")
    assert_same(step, arrays, "float64", guess=guess_of(arrays), **options)


@pytest.mark.parametrize("solver", ["deer", "sequential"])
def test_packed_and_padded(solver):
    step, arrays = recurrence("tanh", "float64")
    resets = np.random.default_rng(3).random((LENGTH, SAMPLES)) < 0.1
    counts = np.array([LENGTH, 23, 1])
    # A sequence that turns bad, and the next.
    arrays["xs"][9, 0], resets[12, 0] = np.nan, True
    options = {"solver": solver, "throw": False, "return_solution": True}

    @jax.jit
    def ours(arrays):
        def one(init, xs, resets, count):
            f = lambda carry, x: step(InJAX, arrays["weights"], carry, x)
            lots = {"resets": resets, "lengths": count, **options}
            return in_jax.scan(f, init, xs, **lots)

        inputs = arrays["init"], arrays["xs"], resets, counts
        (_, ys), solution = jax.vmap(one, (0, 1, 1, 0))(*inputs)
        return ys.swapaxes(0, 1), solution

    def theirs(arrays):
        f = lambda carry, x: step(InTorch, arrays["weights"], carry, x)
        lots = {"resets": resets, "lengths": counts, **options}
        (_, ys), solution = in_torch.scan(f, arrays["init"], arrays["xs"], **lots)
        return ys, solution

    expected, known = ours(jax.tree.map(jnp.asarray, arrays))
    found, solution = theirs(pytree.tree_map(torch.tensor, arrays))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(solution.result, known.result._value)
    np.testing.assert_array_equal(solution.position, known.position)
    assert solution.result.tolist() == [2, 0, 0]
    for name in ("converged_prefix", "sequential_from", "lyapunov_exponent"):
        ours_, theirs_ = known.stats[name], solution.stats[name]
        np.testing.assert_allclose(theirs_, ours_, rtol=1e-10, err_msg=name)


def test_automatic():
    # What is chosen on a CPU may differ; the numbers do not.
    step, arrays = recurrence("gru", "float64")
    expected = by_jax(step, arrays, solver="auto")
    found = by_torch(step, arrays, solver="auto")
    for k in (0, 1):
        assert_near(found[k], expected[k], 1e-10)


def failures(step, arrays, **options):
    """`(values, codes, stats, sentences)` of both."""
    ours = jax.tree.map(jnp.asarray, arrays)
    solve = jax.jit(lambda arrays: solve_in_jax(step, arrays, **options)[1])
    solution = solve(ours)
    pick = lambda tree, k: jax.tree.map(lambda x: x[k], tree)
    expected = (
        np.asarray(solution.value).swapaxes(0, 1),
        np.asarray(solution.result._value),
        {name: np.asarray(x) for name, x in solution.stats.items()},
        [pick(solution, k).message() for k in range(len(solution.result._value))],
    )
    theirs = pytree.tree_map(torch.tensor, arrays)
    other = solve_in_torch(step, theirs, **options)[1]
    found = (
        other.value.numpy(),
        other.result.numpy(),
        {name: x.numpy() for name, x in other.stats.items()},
        [other.message(k) for k in range(len(other.result))],
    )
    return found, expected


def plain(inputs, init):
    return {"weights": {}, "init": np.array(init), "xs": np.array(inputs)}


def poisoned(ops, weights, h, x):
    del weights
    h = ops.tanh(0.5 * h + x)
    return h, h


def logistic(ops, weights, h, x):
    del ops, weights, x
    h = 3.9 * h * (1 - h)
    return h, h


def growing(ops, weights, h, x):
    del ops, weights
    h = 10 * h + x
    return h, h


def exploding(ops, weights, h, x):
    del weights, x
    h = ops.exp(h)
    return h, h


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("solver", ["deer", "jacobi", "sequential"])
def test_nan_from_some_time_on(solver, reverse):
    xs = np.sin(np.arange(LENGTH * 2.0)).reshape(LENGTH, 2, 1)
    xs[17, 1] = np.nan
    arrays = plain(xs, np.ones((2, 1)))
    found, expected = failures(poisoned, arrays, solver=solver, reverse=reverse)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-12)
    np.testing.assert_array_equal(found[1], expected[1])
    for name in COUNTS:
        np.testing.assert_array_equal(found[2][name], expected[2][name], name)
    assert found[3] == expected[3]
    assert found[3][0] == ""
    assert "position: 17" in found[3][1]


@pytest.mark.parametrize("solver", ["deer", "jacobi"])
@pytest.mark.parametrize(
    ("step", "init", "options"),
    [
        (growing, 1.0, {}),
        (growing, 1.0, {"max_steps": 3}),
        (exploding, 1.0, {}),
        (poisoned, 1.0, {"max_steps": 3}),
    ],
    ids=["unstable", "unstable, cut", "overflow", "cut"],
)
def test_failures(step, init, options, solver):
    xs = np.sin(np.arange(LENGTH * 2.0)).reshape(LENGTH, 2, 1)
    arrays = plain(xs, np.full((2, 1), init))
    found, expected = failures(step, arrays, solver=solver, **options)
    np.testing.assert_array_equal(found[1], expected[1])
    for name in COUNTS:
        np.testing.assert_array_equal(found[2][name], expected[2][name], name)
    assert found[3] == expected[3]
    # Relative to each entry: those of an unstable recurrence are of all sizes.
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["deer", "jacobi", "sequential"])
def test_chaos(solver):
    arrays = plain(np.zeros((200, 2, 1)), [[0.3], [0.7]])
    found, expected = failures(logistic, arrays, solver=solver)
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[3] == expected[3]
    assert set(found[2]) == set(expected[2]) == STATS
    # Where rounding decides, both say so instead of agreeing.
    for _, codes, stats, _ in (found, expected):
        assert (stats["error_estimate"] > 1).all()
        if solver == "deer":
            assert (codes != 0).all()
    np.testing.assert_allclose(found[0][:20], expected[0][:20], rtol=1e-8)


@pytest.mark.parametrize("name", ["NaN", "max_steps"])
def test_what_is_raised(name):
    xs = np.ones((LENGTH, 1, 1))
    options = {"solver": "deer"}
    if name == "NaN":
        xs[5] = np.nan
    else:
        options["max_steps"] = 2
    in_one = lambda h, x: poisoned(InJAX, {}, h, x)
    in_other = lambda h, x: poisoned(InTorch, {}, h, x)
    init, inputs = torch.ones(1, 1, dtype=torch.float64), torch.tensor(xs)
    with pytest.raises(RuntimeError) as error:
        in_jax.scan(in_one, jnp.ones(1), jnp.asarray(xs[:, 0]), **options)
    sentences = [str(error.value)]
    with pytest.raises(RuntimeError) as error:
        in_torch.scan(in_other, init, inputs, **options)
    sentences.append(str(error.value))
    options |= {"throw": False, "return_solution": True}
    _, solution = in_torch.scan(in_other, init, inputs, **options)
    # Equinox says more, such as where the error was raised.
    cause = solution.message(0).partition(" First bad position")[0]
    assert all(cause in sentence for sentence in sentences)


BAD = [
    {"solver": "no-such-solver"},
    {"max_steps": 0},
    {"window": 0},
    {"window": 1.5},
    {"rtol": -1.0},
    {"length": 3},
    {"length": -1},
    {"guess": "short"},
    {"guess": "tree"},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_errors_are_the_same(options):
    options = {"solver": "deer", **options}
    kinds = []
    for module, ones in (
        (in_jax, lambda *shape: jnp.ones(shape)),
        (in_torch, lambda *shape: torch.ones(shape)),
    ):
        shape = (1,) if module is in_jax else (1, 1)
        given = dict(options)
        if given.get("guess") == "short":
            given["guess"] = ones(3, *shape)
        elif given.get("guess") == "tree":
            given["guess"] = (ones(4, *shape),)
        with pytest.raises((ValueError, TypeError, LookupError)) as error:
            module.scan(lambda h, x: (h, x), ones(*shape), ones(4, *shape), **given)
        kinds.append(error.type)
    assert kinds[0] is kinds[1]
