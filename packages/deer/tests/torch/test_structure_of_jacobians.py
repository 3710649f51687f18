"""Declared structures of Jacobians: what they are and cost, and when they are false."""

import dataclasses
import functools as ft

import jaxtyping
import numpy as np
import pytest
import torch

import parafix.core.torch
from parafix.core.testing.torch import assert_close, assert_identical, largest_bytes
from parafix.core.torch import (
    Blocks,
    Chain,
    Custom,
    Dense,
    Diagonal,
    jacobian,
    Sequential,
    solve_chain,
    Structured,
)
from parafix.deer.torch import check_structure, choose, DEER, scan


DOUBLE = torch.float64
func = torch.func
FORMS = {
    "dense": (Dense(), 6),
    "diagonal": (Diagonal(), 1),
    "blocks": (Blocks(2), 2),
    "one block": (Blocks(6), 6),
    "halves": (Blocks(2, leaves=2), 2),
    "blocks in two leaves": (Blocks(6, leaves=2), 6),
}


def pattern(structure, size=6):
    """Where the Jacobian may be other than zero, from the definition in words."""
    if isinstance(structure, Dense):
        return np.ones((size, size), bool)
    if isinstance(structure, Diagonal):
        return np.eye(size, dtype=bool)
    per_leaf = size // structure.leaves
    width = structure.size // structure.leaves
    block = np.arange(size) % per_leaf // width
    return block[:, None] == block[None]


def coupled(structure):
    """A nonlinear step that couples just what `structure` allows."""
    weights = np.random.default_rng(0).uniform(-0.9, 0.9, (6, 6)) * pattern(structure)
    weights = torch.tensor(weights)

    def step(z, x):
        return torch.tanh(z @ weights.T + x)

    return step


def inputs(*shape):
    return torch.arange(float(np.prod(shape)), dtype=DOUBLE).sin().reshape(shape)


def loop(f, init, xs):
    carry, ys = init, []
    for x in xs:
        carry, y = f(carry, x)
        ys.append(y)
    return carry, torch.stack(ys)


@pytest.mark.parametrize("name", FORMS)
class TestForms:
    def test_jacobian(self, name):
        structure, pulls = FORMS[name]
        step = coupled(structure)
        z, x = inputs(4, 3, 6), 0.5 - inputs(4, 3, 6)
        each = func.vmap(func.vmap(func.jacfwd(step)))
        expected = each(z, x)
        assert structure.num_linear(6) == pulls
        mapped = func.vmap(ft.partial(jacobian, Structured(step, structure)))
        one = jacobian(Structured(step, structure), z, x)
        for f, a in (one, tuple(y[0] for y in mapped(z[None], x[None]))):
            assert a.shape == (4, 3, *structure.shape(6))
            assert a[0, 0].numel() == structure.num_entries(6)
            assert_close(f, step(z, x), 1e-15)
            assert_close(structure.dense(a, 6), expected, 1e-15)
            product = (expected @ z[..., None])[..., 0]
            assert_close(structure.apply(a, z), product, 1e-15)
            diagonal = expected.diagonal(dim1=-2, dim2=-1)
            assert_close(structure.diagonal(a), diagonal, 1e-15)

    def test_recurrences(self, name):
        structure, _ = FORMS[name]
        _, a = jacobian(
            Structured(coupled(structure), structure), inputs(7, 3, 6), inputs(7, 3, 6)
        )
        b, init = inputs(7, 3, 6), inputs(3, 6)
        matrices = structure.dense(a, 6)
        forward, backward = [], []
        x = y = init
        for t in range(7):
            x = (matrices[t] @ x[..., None])[..., 0] + b[t]
            y = (matrices[-1 - t].mT @ y[..., None])[..., 0] + b[-1 - t]
            forward.append(x)
            backward.insert(0, y)
        solve = ft.partial(structure.solve, a, b, init, "auto")
        assert_close(solve(), torch.stack(forward), 1e-14)
        assert_close(solve(transposed=True), torch.stack(backward), 1e-14)

    def test_vectors_and_entries(self, name):
        structure, _ = FORMS[name]
        v = torch.arange(12.0).reshape(2, 6)
        assert_identical(structure.entries(structure.vectors(v)), v)

    def test_check_structure(self, name):
        structure, _ = FORMS[name]
        step = coupled(structure)
        problem = Chain(
            Structured(step, structure),
            torch.zeros(2, 6, dtype=DOUBLE),
            torch.ones(4, 2, 6, dtype=DOUBLE),
            4,
        )
        parafix.core.torch.check_structure(problem)
        for other, _ in FORMS.values():
            beyond = pattern(structure) & ~pattern(other)
            if beyond.any():
                wrong = dataclasses.replace(problem, step=Structured(step, other))
                with pytest.raises(
                    ValueError, match=r"structure .* is false"
                ) as caught:
                    parafix.core.torch.check_structure(wrong)
                words = str(caught.value).split("Entry (")[1].split(")")[0]
                row, column = map(int, words.split(", "))
                assert beyond[row, column]

    def test_a_chain_and_all_its_derivatives(self, name):
        structure, _ = FORMS[name]
        xs, init = inputs(9, 2, 6), inputs(2, 6)

        def loss(solver, declared, xs, init):
            step = coupled(structure)
            step = Structured(step, declared) if declared else step
            problem = Chain(step, init, xs, 9)
            return solve_chain(problem, solver=solver).value.sin().sum()

        plain = ft.partial(loss, Sequential(1e-9, 1e-9), None)
        solved = ft.partial(loss, DEER(rtol=1e-12, atol=1e-12, chunk=4), structure)

        def derivatives(fn):
            arguments = [x.clone().requires_grad_() for x in (xs, init)]
            first = torch.autograd.grad(fn(*arguments), arguments, create_graph=True)
            second = torch.autograd.grad(sum(g.sin().sum() for g in first), arguments)
            return [g.detach() for g in (*first, *second)]

        expected = derivatives(plain)
        assert_close(derivatives(solved), expected, 1e-10)
        assert_close(list(func.grad(solved, (0, 1))(xs, init)), expected[:2], 1e-10)
        _, tangent = func.jvp(solved, (xs, init), (xs, init))
        by_gradient = (expected[0] * xs).sum() + (expected[1] * init).sum()
        assert_close(tangent, by_gradient, 1e-10)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="6 entries has no blocks of 4"):
        Blocks(4).shape(6)
    with pytest.raises(ValueError, match="multiple of leaves; got 3 and 2"):
        Blocks(3, leaves=2)
    for solver in ("deer", "sequential"):
        with pytest.raises(ValueError, match="no blocks of 4 entries"):
            scan(
                lambda h, x: (h, h),
                torch.zeros(1, 6),
                length=3,
                solver=solver,
                structure=Blocks(4),
            )


@pytest.fixture
def unchecked():
    # What is wrong is to be found by the library itself.
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("structure", ["diagonal", Diagonal])
def test_what_is_no_structure(structure, unchecked):
    f, init = lambda h, x: (h.roll(1, -1), h), torch.ones(1, 6)
    calls = (
        lambda: scan(f, init, length=3, structure=structure, solver="deer"),
        lambda: check_structure(f, structure, init, None),
        lambda: Structured(f, structure),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"such as `Diagonal\(\)`"):
            call()


def test_inputs_of_a_check():
    f, init = lambda h, x: (h, h), torch.ones(1, 6)
    check_structure(f, Diagonal(), init, None)
    for xs, words in (
        (torch.tensor(1.0), "`xs` is a scalar"),
        ((torch.ones(3, 1), torch.ones(4, 1)), "one length"),
    ):
        with pytest.raises(ValueError, match=words):
            check_structure(f, Diagonal(), init, xs)
    f = lambda carry, x: ((carry[0], carry[1] + (carry[0] > 0).sum(-1)), x)
    with pytest.raises(TypeError, match=r"`carry\[1\]`.* depends on `carry\[0\]`"):
        check_structure(f, Diagonal(), (init, torch.zeros(1, dtype=torch.int64)), None)


def elementwise(weights, h, x):
    h = torch.tanh(weights * h + x)
    return h, h


class Supplied:
    """A diagonal step that brings its Jacobian along."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, h, x):
        return elementwise(self.weights, h, x)

    @property
    def structure(self):
        # Of `tanh(w h + x)` it is `w (1 - tanh^2)`.
        def diagonal(h, x):
            return self.weights * (1 - torch.tanh(self.weights * h + x) ** 2)

        return Custom(diagonal, Diagonal())


class TestCustom:
    WEIGHTS = torch.tensor([0.5, -0.8, 0.3], dtype=DOUBLE)

    def test_values_gradient_and_hessian(self):
        xs, init = inputs(20, 2, 3), inputs(2, 3) / 3

        def derivatives(solve):
            weights = self.WEIGHTS.clone().requires_grad_()
            _, ys = solve(Supplied(weights), init, xs)
            value = (ys**3).sum()
            (first,) = torch.autograd.grad(value, weights, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), weights)
            return value.detach(), first.detach(), second

        solve = ft.partial(scan, solver="deer")
        assert_close(derivatives(solve), derivatives(loop), 1e-10)

        def loss(weights):
            _, ys = scan(Supplied(weights), init, xs, solver="deer")
            return (ys**3).sum()

        several = torch.stack([self.WEIGHTS, -self.WEIGHTS])
        expected = []
        for weights in several.clone().requires_grad_().unbind(0):
            weights = weights.detach().requires_grad_()
            value = (loop(Supplied(weights), init, xs)[1] ** 3).sum()
            expected += torch.autograd.grad(value, weights)
        actual = func.vmap(func.grad(loss))(several)
        assert_close(actual, torch.stack(expected), 1e-10)

    @pytest.mark.parametrize("window", [None, 1, 2])
    def test_at_one_time_alone(self, window):
        # What `vmap` returned looked as if it came from outside, and where the shapes
        # were those of the first time, its values of then were put in.
        found = []
        for length in (1, 3):
            xs, init = inputs(length, 2, 3), inputs(2, 3) / 3
            for solve in (ft.partial(scan, solver="deer", window=window), loop):
                given = [self.WEIGHTS.clone(), init.clone(), xs.clone()]
                weights, init_, xs_ = (x.requires_grad_() for x in given)
                _, ys = solve(Supplied(weights), init_, xs_)
                found.append(torch.autograd.grad((ys**3).sum(), (weights, init_, xs_)))
        assert_close(found[::2], found[1::2], 1e-10)

    def test_no_pulls_are_made(self):
        xs = torch.ones(20, 1, 3, dtype=DOUBLE)
        init = torch.zeros(1, 3, dtype=DOUBLE)
        f = Supplied(self.WEIGHTS)
        _, solution = scan(f, init, xs, solver="deer", return_solution=True)
        assert solution.stats["num_linear"] == 0
        check_structure(f, f.structure, init, xs)

    def test_reduced_precision(self):
        xs, init = inputs(20, 2, 3), inputs(2, 3) / 3
        step = lambda h, x: elementwise(self.WEIGHTS.to(h), h, x)[0]
        dtypes = set()

        def diagonal(h, x):
            dtypes.add(h.dtype)
            w = self.WEIGHTS.to(h)
            return w * (1 - torch.tanh(w * h + x) ** 2)

        problem = Chain(
            Structured(step, Custom(diagonal, Diagonal())),
            init.bfloat16(),
            xs.bfloat16(),
            20,
        )
        solution = solve_chain(problem, solver="deer")
        assert dtypes == {torch.bfloat16}
        expected = solve_chain(problem, solver="sequential").value
        assert_close(solution.value, expected, 3e-2)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_derivative_that_is_lost_in_rounding(self, dtype):
        # Far out `1 - tanh^2` is zero, or an `eps`, and this formula is right.
        diagonal = lambda h, x: 2 / torch.cosh(2 * h + x) ** 2
        f = lambda h, x: (torch.tanh(2 * h + x),) * 2
        structure = Custom(diagonal, Diagonal())
        for size in (1, 3):
            init, xs = inputs(2, size).to(dtype), inputs(8, 2, size).to(dtype)
            check_structure(f, structure, init, xs)
            actual = scan(f, init, xs, solver="deer", structure=structure)
            assert_close(actual, loop(f, init, xs), 10 * torch.finfo(dtype).eps)

    def test_a_function_that_is_wrong(self):
        f = ft.partial(elementwise, self.WEIGHTS)
        xs = torch.ones(20, 1, 3, dtype=DOUBLE)
        init = torch.zeros(1, 3, dtype=DOUBLE)
        wrong = Custom(lambda h, x: self.WEIGHTS.expand_as(h), Diagonal())
        with pytest.raises(ValueError, match="is false"):
            check_structure(f, wrong, init, xs)
        with pytest.raises(ValueError, match="is false"):
            scan(f, init, xs, solver="deer", structure=wrong, throw=False)
        shape = Custom(lambda h, x: torch.eye(3, dtype=DOUBLE), Diagonal())
        with pytest.raises(
            ValueError, match=r"must have shape \(3,\).*returned \(3, 3\)"
        ):
            scan(f, init, xs, solver="deer", structure=shape)


class TestFalseDeclarations:
    """What couples entries only somewhere is found, and by `scan` itself."""

    CASES = (
        # Everywhere; below zero only; only for large states; hardly.
        lambda h, x: torch.tanh(0.5 * h + 0.1 * h.roll(1, -1) + x),
        lambda h, x: torch.tanh(0.5 * h + 0.1 * h.roll(1, -1).clamp(max=0) + x),
        lambda h, x: 0.5 * h + h.sign() * torch.relu(h.roll(1, -1).abs() - 3) + x,
        lambda h, x: torch.tanh(0.5 * h + 1e-5 * h.roll(1, -1) + x),
    )
    XS = torch.ones(8, 2, 3, dtype=DOUBLE)
    INIT = torch.zeros(2, 3, dtype=DOUBLE)

    @pytest.mark.parametrize("case", CASES)
    def test_each(self, case):
        def f(h, x):
            h = case(h, x)
            return h, h

        check_structure(f, Dense(), self.INIT, self.XS)
        with pytest.raises(ValueError, match="is false"):
            check_structure(f, Diagonal(), self.INIT, self.XS)

        def total(init, **options):
            options = {"solver": "deer", "throw": False, **options}
            return scan(f, init, self.XS, structure=Diagonal(), **options)[1].sum()

        ways = [
            total,
            ft.partial(total, window=3),
            ft.partial(total, solver="jacobi"),
            lambda init: total(init.clone().requires_grad_()),
            func.grad(total),
            func.vmap(total),
        ]
        for way in ways:
            init = self.INIT.expand(2, 2, 3) if way is ways[-1] else self.INIT
            with pytest.raises(ValueError, match="of the Jacobian is false"):
                way(init)

    def test_resets_hide_none(self):
        f = lambda h, x: (self.CASES[0](h, x),) * 2
        xs = torch.ones(11, 2, 3, dtype=DOUBLE)
        # At every time at which it might be looked for, if nobody minded them.
        options = {"resets": torch.arange(11) % 2 == 0, "structure": Diagonal()}
        for lengths in (None, torch.tensor([2, 5])):
            with pytest.raises(ValueError, match="of the Jacobian is false"):
                scan(f, self.INIT, xs, solver="deer", lengths=lengths, **options)

    def test_inference_mode_hides_none(self):
        f = lambda h, x: (self.CASES[0](h, x),) * 2
        g = Supplied(torch.tensor([0.5, -0.8, 0.3], dtype=DOUBLE))
        counts = []
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                init, xs = self.INIT * 1, self.XS * 1
                with pytest.raises(ValueError, match="is false"):
                    check_structure(f, Diagonal(), init, xs)
                with pytest.raises(ValueError, match="is false"):
                    scan(f, init, xs, solver="deer", structure=Diagonal(), throw=False)
                check_structure(g, g.structure, init, xs)
                _, solution = scan(g, init, xs, solver="deer", return_solution=True)
            counts.append(solution.stats)
        assert_identical(*counts)

    def test_what_is_true_is_no_error(self):
        for shift in (0.0, 100.0):
            f = lambda h, x, s=shift: (torch.tanh(h + x - s),) * 2
            _, ys = scan(f, self.INIT, self.XS, solver="deer", structure=Diagonal())
            assert_close(ys, loop(f, self.INIT, self.XS)[1], 1e-12)

    def test_what_is_not_finite_somewhere_is_no_contradiction(self):
        def f(h, x):
            h = torch.sqrt(h + x)
            return h, h

        init, xs = torch.ones(1, 2, dtype=DOUBLE), torch.ones(5, 1, 2, dtype=DOUBLE)
        actual = scan(f, init, xs, solver="deer", structure=Diagonal())
        assert_close(actual, loop(f, init, xs), 1e-12)

    def test_no_steps_and_no_samples(self):
        f = ft.partial(elementwise, 0.5)
        for length, samples in ((0, 2), (4, 0)):
            init = torch.zeros(samples, 3, dtype=DOUBLE)
            xs = torch.zeros(length, samples, 3, dtype=DOUBLE)
            check_structure(f, Diagonal(), init, xs)
            _, ys = scan(f, init, xs, solver="deer", structure=Diagonal())
            assert ys.shape == (length, samples, 3)


@pytest.mark.parametrize("solver", ["deer", "quasi-deer", "elk"])
def test_a_chain_of_a_structured_step(solver):
    step = coupled(Blocks(2))
    problem = Chain(
        Structured(step, Blocks(2)),
        torch.zeros(2, 6, dtype=DOUBLE),
        inputs(10, 2, 6),
        10,
    )
    solution = solve_chain(problem, solver=solver)
    expected = solve_chain(problem, solver="sequential").value
    assert_close(solution.value, expected, 1e-11)
    # Two pulls in every sweep, in every certificate, and for the growth of errors.
    # Newton's method certifies itself, and its other evaluations take none.
    newton = solver == "deer"
    jacobians = solution.stats["num_steps" if newton else "num_evals"] + int(newton)
    assert_identical(solution.stats["num_linear"], 2 * jacobians)


def test_a_carry_with_leaves_that_are_no_floats():
    def f(carry, x):
        h = torch.tanh(0.5 * carry["h"] + x + 0.1 * carry["count"][:, None])
        return {"h": h, "count": carry["count"] + 1}, h

    init = {"h": torch.zeros(2, 3, dtype=DOUBLE), "count": torch.zeros(2).long()}
    xs = inputs(8, 2, 3)
    check_structure(f, Diagonal(), init, xs)
    actual = scan(f, init, xs, solver="deer", structure=Diagonal())
    assert_close(actual, loop(f, init, xs), 1e-12)
    halved = scan(f, init, xs, solver="deer", structure=Diagonal(), reverse=True)
    assert_close(halved[0], loop(f, init, xs.flip(0))[0], 1e-12)


def test_memory_of_a_diagonal_one():
    # One chunk for all times, so that it is the structure that saves memory.
    length, size = 128, 64
    weights = torch.linspace(-0.9, 0.9, size, dtype=DOUBLE)
    xs = torch.ones(length, 1, size, dtype=DOUBLE)
    dense = length * size * size * 8

    def gradient(structure):
        solver = DEER(rtol=1e-9, atol=1e-9, chunk=length)
        variable = weights.clone().requires_grad_()
        (_, ys), _ = scan(
            ft.partial(elementwise, variable),
            torch.zeros(1, size, dtype=DOUBLE),
            xs,
            solver=solver,
            window=length,
            return_solution=True,
            structure=structure,
        )
        (ys**2).sum().backward()

    # The points at which the declaration is looked at hold matrices of probes at most.
    assert largest_bytes(gradient, Diagonal()) <= 2 * length * size * 8
    assert largest_bytes(gradient, Dense()) >= dense


def test_the_automatic_choice_looks_at_blocks():
    assert choose(10_000, 256, "cuda").solver == "sequential"
    assert choose(10_000, 256, "cuda", 1, Diagonal()).solver == "deer"
    assert choose(10_000, 256, "cuda", 1, Blocks(16)).solver == "deer"
    assert choose(10_000, 256, "cuda", 1, Blocks(64)).solver == "sequential"
    assert choose(10_000, 64, "cpu", 1).solver == "sequential"
    assert choose(10_000, 64, "cpu", 1, Diagonal()).solver == "deer"
    assert choose(10_000, 64, "cpu", 1, Blocks(2)).solver == "sequential"
    assert choose(10_000, 64, "cpu", 8, Diagonal()).solver == "sequential"
    assert "64 x 64" in choose(10_000, 256, "cuda", 1, Blocks(64)).reason
