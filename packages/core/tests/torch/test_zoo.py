import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree

from parafix.core.testing.torch import (
    affine,
    dense_jacobian,
    dense_pullback,
    dense_pushforward,
    dense_solution,
    directional_derivative,
    stacked,
    tanh_layer,
    zoo,
    zoo_names,
)


SIZES = (1, 2, 7, 50)
KNOWN = zoo_names("contractive", "expansive")


def largest(tree):
    return max(float(abs(leaf).max()) for leaf in pytree.tree_leaves(tree))


def radius(matrix):
    return max(abs(np.linalg.eigvals(matrix)))


def jacobian(problem):
    """By finite differences of `fn` at the answer, over the entries of all leaves."""
    leaves, structure = pytree.tree_flatten(problem.solution)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]

    def flat(z):
        parts = np.split(z, ends)
        parts = [
            torch.as_tensor(p.reshape(leaf.shape))
            for p, leaf in zip(parts, leaves, strict=True)
        ]
        out = problem.fn(pytree.tree_unflatten(parts, structure), problem.args)
        return np.concatenate([np.ravel(leaf) for leaf in pytree.tree_leaves(out)])

    z = np.concatenate([np.ravel(leaf) for leaf in leaves])
    columns = [directional_derivative(flat, z, e) for e in np.eye(len(z))]
    return np.array(columns).T


@pytest.mark.parametrize("name", KNOWN)
class TestAnswers:
    def test_are_fixed_points(self, name):
        for size in SIZES:
            for seed in range(3):
                problem = zoo(name, seed, size)
                # Mixed leaves round to float32.
                tolerance = 1e-6 if name == "mixed-tree" else 1e-13
                # Rounding is in proportion to the products that are summed.
                scale = largest(problem.args) * largest(problem.solution)
                tolerance = tolerance * max(1, scale)
                assert problem.residual(problem.solution, 0, tolerance) <= 1

    def test_have_the_structure_and_types_of_the_guess(self, name):
        for dtype in (torch.float32, torch.float64):
            problem = zoo(name, 0, 7, dtype)
            assert {x.dtype for x in pytree.tree_leaves(problem.args)} == {dtype}
            if name != "mixed-tree":
                assert {x.dtype for x in pytree.tree_leaves(problem.y0)} == {dtype}
            out = problem.fn(problem.y0, problem.args)
            for other in (out, problem.solution):
                assert types(other) == types(problem.y0)

    def test_are_as_hard_as_they_say(self, name):
        problem = zoo(name, 0, 50)
        if name == "mixed-tree":
            return
        if problem.fn in (affine, tanh_layer):
            (matrix,) = dense_jacobian(problem.fn, problem.args)
            np.testing.assert_allclose(matrix, jacobian(problem), atol=1e-9)
        else:
            matrix = jacobian(problem)
        assert (radius(matrix) < 1) == (problem.kind == "contractive")
        # The inverse of `I - J` makes of a residual an error.
        assert np.linalg.cond(np.eye(len(matrix)) - matrix) < 1e3

    def test_are_seeded(self, name):
        one, again, other = zoo(name, 3), zoo(name, 3), zoo(name, 4)
        pairs = lambda x, y: zip(*map(pytree.tree_leaves, (x, y)), strict=True)
        assert all(np.array_equal(*p) for p in pairs(one.solution, again.solution))
        assert not any(np.array_equal(*p) for p in pairs(one.solution, other.solution))

    def test_scale_with_the_problem(self, name):
        for scale in (1e-3, 1e3):
            problem = zoo(name, 0, 7).scaled(scale)
            tolerance = 1e-5 if name == "mixed-tree" else 1e-12
            assert problem.residual(problem.solution, tolerance, scale * tolerance) <= 1
            assert types(problem.y0) == types(problem.solution)


def types(tree):
    leaves, structure = pytree.tree_flatten(tree)
    leaves = [torch.as_tensor(x) for x in leaves]
    return [(tuple(x.shape), x.dtype) for x in leaves], structure


def test_spectra():
    bounds = {"easy": (-0.1, 0.1), "symmetric": (-0.9, 0.9), "wide": (-3, 0.5)}
    for name, (low, high) in bounds.items():
        for seed in range(5):
            matrix = zoo(name, seed).args["matrix"][0].numpy()
            np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)
            values = np.linalg.eigvalsh(matrix)
            np.testing.assert_allclose(values[[0, -1]], (low, high), atol=1e-12)
    for name in ("orthogonal", "rotations"):
        matrix = zoo(name).args["matrix"][0].numpy()
        np.testing.assert_allclose(matrix @ matrix.T, 0.95**2 * np.eye(50), atol=1e-12)
    assert abs(radius(zoo("radius-3").args["matrix"][0].numpy()) - 3) < 1e-12


def test_hopeless_problems_are_hopeless():
    becomes = zoo("becomes-nan", 0, 5)
    z = becomes.y0
    images = []
    for _ in range(6):
        z = becomes.fn(z, becomes.args)
        images.append(bool(z.isfinite().all()))
    assert images[0]
    assert not images[-1]
    at_guess = zoo("nan-at-guess", 0, 5)
    assert at_guess.y0.isfinite().all()
    assert at_guess.fn(at_guess.y0, at_guess.args).isnan().all()
    nowhere = zoo("no-solution", 0, 5)
    for z in np.linspace(-10, 10, 201):
        z = torch.full((1, 5), z, dtype=torch.float64)
        assert (nowhere.fn(z, nowhere.args) - z >= 1 - 1e-12).all()
    for problem in (becomes, at_guess, nowhere):
        assert problem.solution is None
        assert problem.kind == "hopeless"


@pytest.mark.parametrize("name", ["tanh", "radius-3"])
def test_derivatives_agree_with_differences(name):
    problem = stacked([zoo(name, seed, 6) for seed in range(2)])
    random = np.random.default_rng(0)
    args = {name: x.numpy() for name, x in problem.args.items()}
    direction = {name: 0.1 * random.normal(size=x.shape) for name, x in args.items()}
    weights = random.normal(size=(2, 6))
    solution = lambda args: dense_solution(problem.fn, args)
    expected = directional_derivative(solution, args, direction, 1e-3)
    tangent = dense_pushforward(problem.fn, args, direction)
    np.testing.assert_allclose(tangent, expected, rtol=1e-8, atol=1e-8)
    pulled = dense_pullback(problem.fn, args, weights)
    actual = sum(np.vdot(pulled[x], direction[x]) for x in args)
    np.testing.assert_allclose(actual, np.vdot(weights, tangent), rtol=1e-10)


def test_roots_have_the_same_answer():
    problem = zoo("tanh", 0, 7)
    root = problem.as_root()
    answer = torch.as_tensor(problem.solution)
    np.testing.assert_allclose(root.fn(answer, root.args), 0, atol=1e-14)
    # Equal, so that several can be samples of one batch.
    assert root.fn == zoo("tanh", 1, 7).as_root().fn
    assert hash(root.fn) == hash(zoo("tanh", 1, 7).as_root().fn)


def test_batches():
    problems = [zoo("easy", 0, 4), zoo("wide", 1, 4)]
    batch = stacked(problems)
    assert batch.kind == "batch"
    assert batch.residual(batch.solution, 0, 1e-13) <= 1
    for i, problem in enumerate(problems):
        np.testing.assert_array_equal(batch.solution[i], problem.solution[0])
    scaled = stacked([problems[0].scaled(2.0), problems[0].scaled(3.0)])
    assert scaled.residual(scaled.solution, 0, 1e-12) <= 1
    with pytest.raises(ValueError, match="same `fn`"):
        stacked([zoo("easy", 0, 4), zoo("tanh", 0, 4)])
    hopeless = stacked([zoo("becomes-nan", 0, 4), zoo("nan-at-guess", 0, 4)])
    assert np.isnan(hopeless.solution).all()
    assert tanh_layer(batch.y0, batch.args).shape == (2, 4)


def test_unknown_names():
    with pytest.raises(ValueError, match="'simmetric'.*symmetric"):
        zoo("simmetric")
    with pytest.raises(ValueError, match="not known"):
        dense_solution(torch.sin, zoo("easy", 0, 3).args)


def test_what_the_kit_imports():
    # Problems and oracles are of use outside pytest, too; SciPy is not needed at all.
    program = (
        "import sys, parafix.core.testing; assert 'torch' not in sys.modules;"
        "import parafix.core.testing.torch;"
        "assert not {'pytest', 'scipy.optimize', 'hypothesis'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
