"""`fixed_point` and `root_find`: values, derivatives, batches, failures, bad input."""

import functools as ft
import itertools
import subprocess
import sys
from typing import ClassVar

import jaxtyping
import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from parafix.core.testing.torch import assert_close, assert_identical, CallCounter
from parafix.core.torch import (
    AbstractDenseTangent,
    Anderson,
    Broyden,
    fixed_point,
    FixedPoint,
    GMRES,
    ImplicitAdjoint,
    LU,
    Newton,
    NewtonKrylov,
    OneStepAdjoint,
    PhantomAdjoint,
    RESULTS,
    root_find,
    UnrolledAdjoint,
)
from parafix.core.torch._linear import gmres
from parafix.core.torch._watch import Watch


SIZE = 6
SOLVERS = (
    FixedPoint,
    Anderson,
    Broyden,
    ft.partial(Broyden, kind="bad"),
    ft.partial(Broyden, memory=4),
    Newton,
    ft.partial(Newton, linear_solver=GMRES()),
    NewtonKrylov,
)
DOUBLE = torch.float64


def tensor(x, dtype=DOUBLE):
    return torch.as_tensor(np.asarray(x), dtype=dtype)


def matrix(seed=0, scale=0.5, size=SIZE):
    values = np.random.default_rng(seed).normal(size=(size, size))
    return tensor(values * scale / np.abs(np.linalg.eigvals(values)).max())


def vectors(seed=1, samples=2, size=SIZE):
    return tensor(np.random.default_rng(seed).normal(size=(samples, size)))


def cell(z, args):
    w, b = args
    return torch.tanh((w * z[:, None]).sum(-1) + b)


ARGS = (matrix(), vectors())
GUESS = torch.zeros(2, SIZE, dtype=DOUBLE)
tight = ft.partial(fixed_point, cell, GUESS, rtol=1e-13, atol=1e-13)


def by_iteration(w, b):
    """The fixed points by NumPy, and the Jacobians there."""
    w, b = np.asarray(w, float), np.asarray(b, float)
    z = np.zeros_like(b)
    for _ in range(2000):
        z = np.tanh(z @ w.T + b)
    return z, (1 - z**2)[..., None] * w


def spelt_out(w, b):
    """The fixed points by PyTorch, to be differentiated step by step."""
    z = torch.zeros_like(b)
    for _ in range(100):
        z = cell(z, (w, b))
    return z


class _Calls(TorchDispatchMode):
    """Counts the calls of PyTorch's operations under it."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        self.number += 1
        return func(*args, **(kwargs or {}))


class TestValues:
    @pytest.mark.parametrize("make", SOLVERS)
    def test_every_solver(self, make):
        expected, _ = by_iteration(*ARGS)
        for verb, fn in (
            (fixed_point, cell),
            (root_find, lambda z, args: z - cell(z, args)),
        ):
            solution = verb(fn, GUESS, ARGS, solver=make(1e-12, 1e-12))
            assert_close(solution.value, expected, 1e-10)
            assert (solution.result == RESULTS.successful).all()
            assert (solution.stats["residual"] <= 1).all()
            for x in (solution.result, *solution.stats.values()):
                assert x.shape == (2,)

    def test_by_name(self):
        one = torch.ones(1, dtype=DOUBLE)
        found = fixed_point(torch.cos, one).value
        assert_close(found, tensor([0.7390851332151607]), 1e-11)
        found = root_find(lambda y, a: y**2 - a, one, 2.0).value
        assert_close(found, tensor([2**0.5]), 1e-11)
        for name in ("fixed-point", "anderson", "broyden", "newton", "newton-krylov"):
            solution = fixed_point(cell, GUESS, ARGS, solver=name)
            assert_close(solution.value, by_iteration(*ARGS)[0], 1e-10)

    def test_tuples_of_several_dtypes(self):
        # Every leaf is held to the tolerance of its own dtype.
        def f(y):
            u, v = y
            return (
                0.5 * torch.cos(u) + 0.1 * v.sum((1, 2))[:, None].to(u.dtype),
                0.3 * torch.sin(v) + 0.1 * u[:, None, :2].to(v.dtype),
            )

        y0 = (torch.zeros(4, 3, dtype=DOUBLE), torch.zeros(4, 1, 2))
        solution = fixed_point(f, y0)
        u, v = solution.value
        assert (u.shape, u.dtype) == ((4, 3), torch.float64)
        assert (v.shape, v.dtype) == ((4, 1, 2), torch.float32)
        image = f((u, v))
        assert (image[0] - u).abs().max() < 4e-12
        assert (image[1] - v).abs().max() < 1e-5

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("make", [Anderson, Broyden, Newton, NewtonKrylov])
    def test_narrow_dtypes(self, make, dtype):
        args = tuple(x.to(dtype).requires_grad_() for x in ARGS)
        tolerance = torch.finfo(dtype).eps ** 0.75
        solver = make(tolerance, tolerance)
        solution = fixed_point(cell, GUESS.to(dtype), args, solver=solver)
        assert solution.value.dtype == dtype
        expected, _ = by_iteration(*(x.detach().double() for x in args))
        error = (solution.value.double() - tensor(expected)).abs().max()
        assert error < 4 * tolerance
        found = torch.autograd.grad(solution.value.sum(), args)
        wide = [x.detach().double().requires_grad_() for x in args]
        exact = torch.autograd.grad(spelt_out(*wide).sum(), wide)
        for x, y in zip(found, exact, strict=True):
            assert x.dtype == dtype
            assert (x.double() - y).norm() < 8 * tolerance * y.norm()

    def test_under_autocast(self):
        linear = torch.nn.Linear(8, 8)
        x = torch.ones(3, 8)
        f = lambda z: torch.tanh(0.5 * linear(z) + x)
        with torch.autocast("cpu", torch.bfloat16):
            solution = fixed_point(
                f, torch.zeros(3, 8), rtol=0.03, atol=0.03, solver="anderson"
            )
        assert solution.value.dtype == torch.float32
        solution.value.sum().backward()
        exact = fixed_point(f, torch.zeros(3, 8)).value.sum()
        (expected,) = torch.autograd.grad(exact, linear.weight)
        assert linear.weight.grad is not None
        assert (linear.weight.grad - expected).norm() < 0.1 * expected.norm()

    def test_of_size_zero(self):
        for shape in ((0, 3), (2, 0), (0,)):
            solution = fixed_point(lambda y: y, torch.zeros(shape))
            assert solution.value.shape == shape
            assert solution.result.shape == shape[:1]
            assert (solution.result == RESULTS.successful).all()

    @pytest.mark.parametrize("wanted", [False, True])
    @pytest.mark.parametrize("name", ["anderson", "broyden", "newton", "fixed-point"])
    def test_evaluations_are_counted(self, name, wanted):
        # The run that finds what `f` depends on is the first evaluation.
        counter = CallCounter(cell)
        args = (ARGS[0].clone().requires_grad_(wanted), ARGS[1])
        stats = fixed_point(counter, GUESS, args, solver=name).stats
        assert int(stats["num_evals"].max()) == counter.calls
        assert_identical(stats["num_evals"], stats["num_steps"])
        if name == "newton":
            # The last step only confirms.
            assert_identical(stats["num_linear"], SIZE * (stats["num_steps"] - 1))

    @pytest.mark.parametrize(
        ("make", "most"), [(FixedPoint, 15), (Anderson, 36), (Broyden, 55)]
    )
    def test_calls_of_a_step(self, make, most):
        # Of a tiny `f` every call of PyTorch tells: these are those of steps in which
        # nothing ends, three of `f` and the copy that it is given among them.
        w, b = ARGS
        calls = []
        for max_steps in (3, 6):
            with torch.no_grad(), _Calls() as counter:
                fixed_point(
                    lambda z: torch.tanh(z @ w + b[:1]),
                    GUESS[:1],
                    solver=make(1e-300, 1e-300),
                    max_steps=max_steps,
                    throw=False,
                )
            calls.append(counter.number)
        assert 0 < calls[1] - calls[0] <= 3 * most

    @pytest.mark.parametrize("solver", ["anderson", "newton", "newton-krylov"])
    def test_without_gradients(self, solver):
        weight = ARGS[0].clone().requires_grad_()
        found = []
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                # Made there: by the arguments, and by what `fn` closes over.
                args, one = (weight * 1, ARGS[1] * 1), torch.ones(1, dtype=DOUBLE)
                fn = lambda z, args, one=one: cell(z * one, args) * one
                solution = fixed_point(fn, GUESS * 1, args, solver=solver)
            assert not solution.value.requires_grad
            found.append((solution.value, solution.result, solution.stats))
        assert_identical(*found)

    @pytest.mark.parametrize("name", ["fixed-point", "anderson", "newton"])
    @pytest.mark.parametrize("shape", [(2, SIZE), (2, SIZE, 1)])
    def test_what_works_in_place(self, name, shape):
        guess = GUESS.clone().reshape(shape)
        for context in (torch.no_grad(), torch.enable_grad()):
            with context:
                solution = fixed_point(
                    lambda z: z.mul_(0.5).add_(1), guess, solver=name
                )
            assert_close(solution.value, torch.full_like(guess, 2.0), 1e-11)
            assert (solution.stats["residual"] > 0).any() or name != "fixed-point"
        assert_identical(guess, GUESS.reshape(shape))

    def test_a_network_that_works_in_place(self):
        weight = ARGS[0] / 2

        def gradient(relu):
            variable = weight.clone().requires_grad_()
            fn = lambda z: relu(z) @ variable + ARGS[1]
            value = fixed_point(fn, GUESS).value
            return value.detach(), *torch.autograd.grad(value.sum(), variable)

        assert_identical(gradient(torch.relu_), gradient(torch.relu))


class TestDerivatives:
    """Against dense linear algebra, and against PyTorch through many plain steps."""

    direction = (matrix(5, 1.0), vectors(6))
    weights = vectors(7)

    def gradient(self, args):
        w, b = (np.asarray(x) for x in args)
        z, jacobian = by_iteration(w, b)
        system = np.eye(SIZE) - np.swapaxes(jacobian, 1, 2)
        u = np.linalg.solve(system, np.asarray(self.weights)[..., None])[..., 0]
        u = u * (1 - z**2)
        return np.einsum("bi,bj->ij", u, z), u

    def loss(self, *args, **options):
        return (self.weights * tight(args, **options).value).sum()

    @pytest.mark.parametrize("adjoint", ["implicit", "unrolled"])
    def test_first(self, adjoint):
        loss = ft.partial(self.loss, adjoint=adjoint)
        expected = self.gradient(ARGS)
        args = tuple(x.clone().requires_grad_() for x in ARGS)
        assert_close(torch.autograd.grad(loss(*args), args), expected, 1e-9)
        assert_close(grad(loss, (0, 1))(*ARGS), expected, 1e-9)
        along = sum(
            np.vdot(x, y.numpy()) for x, y in zip(expected, self.direction, strict=True)
        )
        _, tangent = jvp(loss, ARGS, self.direction)
        assert_close(tangent, tensor(along), 1e-9)
        with forward_ad.dual_level():
            pairs = zip(ARGS, self.direction, strict=True)
            duals = [forward_ad.make_dual(x, t) for x, t in pairs]
            tangent = forward_ad.unpack_dual(loss(*duals)).tangent
        assert_close(tangent, tensor(along), 1e-9)

    @pytest.mark.parametrize("make", [Anderson, Newton])
    def test_by_finite_differences(self, make):
        w, b = matrix(size=3).requires_grad_(), vectors(size=3).requires_grad_()
        guess = torch.zeros(2, 3, dtype=DOUBLE)

        def solve(w, b):
            solver = make(1e-13, 1e-13)
            return fixed_point(cell, guess, (w, b), solver=solver).value.sin()

        assert torch.autograd.gradcheck(solve, (w, b), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(solve, (w, b), check_fwd_over_rev=True)

    @pytest.mark.parametrize("outer", [jacfwd, jacrev])
    @pytest.mark.parametrize("inner", [jacfwd, jacrev])
    def test_second(self, outer, inner):
        w, b = ARGS
        found = outer(inner(lambda b: self.loss(w, b)))(b)
        for i in range(2):
            step = torch.zeros_like(b)
            step[0, i] = 1e-5
            above, below = (self.gradient((w, x))[1] for x in (b + step, b - step))
            assert_close(found[0, i], tensor(above - below) / 2e-5, 1e-8)

    def test_third(self):
        small = (matrix(size=2), vectors(size=2))

        def third(solve):
            loss = lambda b: solve(small[0], b).sin().sum()
            return jacfwd(jacrev(jacfwd(loss)))(small[1])

        guess = torch.zeros(2, 2, dtype=DOUBLE)
        ours = lambda *args: (
            fixed_point(cell, guess, args, rtol=1e-13, atol=1e-13).value
        )
        assert_close(third(ours), third(spelt_out), 1e-9)

    def test_by_double_backward(self):
        results = []
        for solve in (lambda *args: tight(args).value, spelt_out):
            args = tuple(x.clone().requires_grad_() for x in ARGS)
            first = torch.autograd.grad(
                (self.weights * solve(*args)).sum(), args, create_graph=True
            )
            penalty = sum((x * x).sum() for x in first)
            results.append(torch.autograd.grad(penalty, args))
        assert_close(*results, 1e-9)

    @pytest.mark.parametrize("make", SOLVERS)
    def test_of_what_is_unrolled(self, make):
        solve = lambda b, checkpoint=False: (
            fixed_point(
                cell,
                GUESS,
                (ARGS[0], b),
                solver=make(1e-13, 1e-13),
                adjoint=UnrolledAdjoint(checkpoint),
            ).value
        )
        loss = lambda b: (self.weights * solve(b)).sum()
        exact = hessian(lambda b: self.loss(ARGS[0], b))(ARGS[1])
        # Derivatives converge later than the iterates.
        assert_close(hessian(loss)(ARGS[1]), exact, 1e-6)
        b = ARGS[1].clone().requires_grad_()
        plain, checked = (
            torch.autograd.grad(solve(b, c).sum(), b)[0] for c in (False, True)
        )
        assert_close(checked, plain, 1e-14)

    def test_through_closures_and_of_roots(self):
        def loss(w, b):
            root = lambda z: z - cell(z, (w, b))
            found = root_find(root, GUESS, rtol=1e-13, atol=1e-13).value
            return (self.weights * found).sum()

        expected = self.gradient(ARGS)
        assert_close(grad(loss, (0, 1))(*ARGS), expected, 1e-9)
        args = tuple(x.clone().requires_grad_() for x in ARGS)
        assert_close(torch.autograd.grad(loss(*args), args), expected, 1e-9)

    def test_under_vmap(self):
        ws = torch.stack([matrix(seed) for seed in range(3)])
        bs = torch.stack([vectors(seed) for seed in range(3)], 1)
        weighted = lambda solve: lambda *args: (self.weights * solve(*args)).sum()

        def all_of(solve):
            loss = weighted(solve)
            return (
                vmap(solve, (0, None))(ws, bs[:, 0]),
                vmap(solve, (0, 1), 1)(ws, bs),
                vmap(grad(loss), (0, 1))(ws, bs),
                grad(lambda ws: vmap(loss, (0, 1))(ws, bs).sum())(ws),
                vmap(vmap(grad(loss), (0, None)), (None, 1))(ws, bs),
                vmap(lambda w, b: jvp(solve, (w, b), (w, b))[1], (0, 1))(ws, bs),
                jvp(lambda ws: vmap(solve, (0, 1))(ws, bs), (ws,), (ws,))[1],
                vmap(jacfwd(jacrev(loss, 1), 1), (0, 1))(ws, bs),
            )

        def closed(w, b):
            f = lambda z: cell(z, (w, b))
            return fixed_point(f, GUESS, rtol=1e-13, atol=1e-13).value

        expected = all_of(spelt_out)
        assert_close(all_of(closed), expected, 1e-9)
        assert_close(all_of(lambda *args: tight(args).value), expected, 1e-9)

    def test_mixed_systems(self):
        # `torch.func` inside of plain gradients, and a pull after its transform ended.
        results = []
        for solve in (lambda *args: tight(args).value, spelt_out):
            w = ARGS[0].clone().requires_grad_()
            v = self.weights.clone().requires_grad_()
            loss = lambda w, solve=solve: solve(w, ARGS[1]).sin().sum()
            inner = grad(loss)(w)
            (over,) = torch.autograd.grad((inner * inner).sum(), w)
            _, pull = vjp(solve, w, ARGS[1])
            later = torch.autograd.grad((pull(v)[0] ** 2).sum(), (w, v))
            results.append((over, *later))
        assert_close(*results, 1e-9)

    def test_with_respect_to_the_guess(self):
        for adjoint in ("implicit", "one-step", "phantom", "unrolled"):

            def loss(guess, adjoint=adjoint):
                solution = fixed_point(cell, guess, ARGS, adjoint=adjoint, atol=0.1)
                return (self.weights * solution.value).sum()

            guess = GUESS.clone().requires_grad_()
            if adjoint == "unrolled":
                (found,) = torch.autograd.grad(loss(guess), guess)
                assert found.abs().max() > 1e-6
                continue
            # One that depends on nothing else has no gradient to compute.
            assert_identical(grad(loss)(GUESS), torch.zeros_like(GUESS))
            assert_identical(jvp(loss, (GUESS,), (GUESS + 1,))[1], tensor(0.0))

    def test_a_guess_that_is_used_elsewhere(self):
        w, b = (x.clone().requires_grad_() for x in ARGS)
        f = lambda z: cell(z, (w, b))
        value = fixed_point(f, b, rtol=1e-13, atol=1e-13).value
        found = torch.autograd.grad((self.weights * value).sum(), (w, b))
        assert_close(found, self.gradient(ARGS), 1e-9)

    def test_of_a_map_that_expands(self):
        w = matrix(8, 3.0)
        f = lambda z, args: (args[0] * z[:, None]).sum(-1) + args[1]
        inverse = torch.linalg.inv(torch.eye(SIZE, dtype=DOUBLE) - w)
        for make in (Anderson, Broyden, Newton, NewtonKrylov):
            b = ARGS[1].clone().requires_grad_()
            value = fixed_point(f, GUESS, (w, b), solver=make(1e-12, 1e-12)).value
            assert_close(value.detach(), ARGS[1] @ inverse.T, 1e-9)
            (found,) = torch.autograd.grad((self.weights * value).sum(), b)
            assert_close(found, self.weights @ inverse, 1e-9)

    def test_phantom_steps_are_a_series(self):
        _, jacobian = by_iteration(*ARGS)
        adjoint = PhantomAdjoint(steps=3, damping=0.25)
        solve = lambda x: (
            fixed_point(
                lambda y, x: cell(y, ARGS) + x,
                GUESS,
                x,
                adjoint=adjoint,
                rtol=1e-13,
                atol=1e-13,
            ).value
        )
        t, u = np.zeros((2, *GUESS.shape))
        v = np.asarray(self.weights)
        for _ in range(3):
            t = 0.25 * t + 0.75 * (np.einsum("bij,bj->bi", jacobian, t) + v)
            u = 0.25 * u + 0.75 * (np.einsum("bij,bi->bj", jacobian, u) + v)
        assert_close(jvp(solve, (GUESS,), (self.weights,))[1], t, 1e-10)
        assert_close(vjp(solve, GUESS)[1](self.weights)[0], u, 1e-10)

    def test_one_step(self):
        b = ARGS[1].clone().requires_grad_()
        value = tight((ARGS[0], b), adjoint=OneStepAdjoint()).value
        (found,) = torch.autograd.grad((self.weights * value).sum(), b)
        z, _ = by_iteration(*ARGS)
        assert_close(found, np.asarray(self.weights) * (1 - z**2), 1e-9)

    def test_by_a_factorisation(self):
        adjoint = ImplicitAdjoint(LU())
        loss = ft.partial(self.loss, adjoint=adjoint)
        assert_close(grad(loss, (0, 1))(*ARGS), self.gradient(ARGS), 1e-9)
        exact = hessian(lambda b: self.loss(ARGS[0], b))(ARGS[1])
        assert_close(hessian(lambda b: loss(ARGS[0], b))(ARGS[1]), exact, 1e-9)

    @pytest.mark.parametrize("transformed", [False, True])
    def test_what_a_solver_has_learnt_can_be_used(self, transformed):
        solver = Broyden(1e-13, 1e-13, memory=50)
        found = {}
        for name in ("learnt", "implicit", "one-step"):
            adjoint = Learnt() if name == "learnt" else name
            loss = lambda b, adjoint=adjoint: (
                self.weights
                * fixed_point(
                    cell, GUESS, (ARGS[0], b), solver=solver, adjoint=adjoint
                ).value
            ).sum()
            if transformed:
                found[name] = vmap(grad(loss))(ARGS[1][None])[0]
            else:
                b = ARGS[1].clone().requires_grad_()
                (found[name],) = torch.autograd.grad(loss(b), b)
        error, other = (
            (found[name] - found["implicit"]).abs().max()
            for name in ("learnt", "one-step")
        )
        assert 1e-9 < error < 0.8 * other


class Learnt(AbstractDenseTangent):
    """What the solver has learnt of the inverse Jacobian, instead of a linear solve."""

    uses_inverse: ClassVar[bool] = True

    def solve(self, operator, b, throw, inverse):
        assert inverse is not None
        return -inverse(b)


class Layer(torch.nn.Module):
    """`z = tanh(W z + x)` with a module's own weights."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4, dtype=DOUBLE)
        with torch.no_grad():
            self.linear.weight.mul_(0.5)

    def forward(self, x):
        return fixed_point(
            lambda z: torch.tanh(self.linear(z) + x),
            torch.zeros_like(x),
            rtol=1e-13,
            atol=1e-13,
        ).value

    def spelt_out(self, x):
        z = torch.zeros_like(x)
        for _ in range(150):
            z = torch.tanh(self.linear(z) + x)
        return z


class Scale(torch.autograd.Function):
    """`w z`, whose `w` is an argument of a `Function` alone."""

    @staticmethod
    def forward(ctx, z, w):
        ctx.save_for_backward(z, w)
        return z * w

    @staticmethod
    def backward(ctx, *cotangents):
        z, w = ctx.saved_tensors
        return cotangents[0] * w, (cotangents[0] * z).sum()


class TestCapturedTensors:
    @pytest.mark.parametrize("train", [False, True])
    def test_weights_of_a_module(self, train):
        torch.manual_seed(0)
        layer = Layer().train(train)
        x = vectors(3, 3, 4).requires_grad_()
        leaves = (*layer.parameters(), x)
        results = []
        for forward in (layer, layer.spelt_out):
            first = torch.autograd.grad(
                forward(x).sin().sum(), leaves, create_graph=True
            )
            second = torch.autograd.grad(sum((g * g).sum() for g in first), leaves)
            results.append((*first, *second))
        assert_close(*results, 1e-9)
        layer(x).sum().backward()
        assert layer.linear.weight.grad is not None

    @pytest.mark.parametrize("frozen", [False, True])
    def test_gradients_for_each_sample(self, frozen):
        # The weights are others by the time that the derivative is taken.
        torch.manual_seed(0)
        layer = Layer().requires_grad_(not frozen)
        params = {name: 0.9 * x.detach() for name, x in layer.named_parameters()}
        xs = vectors(3, 5, 4)

        def loss(params, x):
            return functional_call(layer, params, (x[None],)).sin().sum()

        def expected(params, x):
            z = torch.zeros(1, 4, dtype=DOUBLE)
            weight, bias = params["linear.weight"], params["linear.bias"]
            for _ in range(150):
                z = torch.tanh(torch.nn.functional.linear(z, weight, bias) + x)
            return z.sin().sum()

        for of in (grad, lambda f: jacfwd(grad(f))):
            found, exact = (
                vmap(of(f), (None, 0))(params, xs) for f in (loss, expected)
            )
            assert_close(found, exact, 1e-9)
        leaves = {name: x.clone().requires_grad_() for name, x in params.items()}
        found, exact = (
            torch.autograd.grad(f(leaves, xs[0]), list(leaves.values()))
            for f in (loss, expected)
        )
        assert_close(found, exact, 1e-9)

    @pytest.mark.parametrize("make", [Anderson, Newton])
    def test_a_solve_inside_of_another(self, make):
        def solve(f, z):
            return fixed_point(f, z, solver=make(1e-13, 1e-13)).value

        def many(f, z):
            for _ in range(60):
                z = f(z)
            return z

        def loss(w, b, solve):
            inner = lambda z: solve(
                lambda u: torch.tanh(u @ w + z), torch.zeros_like(z)
            )
            outer = solve(lambda z: 0.3 * torch.cos(inner(z) @ w) + b, GUESS)
            return outer.sin().sum()

        results = []
        for way in (solve, many):
            args = tuple(x.clone().requires_grad_() for x in ARGS)
            first = torch.autograd.grad(loss(*args, way), args, create_graph=True)
            second = torch.autograd.grad(sum((g * g).sum() for g in first), args)
            transformed = grad(loss, (0, 1))(*ARGS, way)
            _, tangent = jvp(lambda w, b, way=way: loss(w, b, way), ARGS, ARGS)
            results.append((first, second, transformed, tangent))
        assert_close(*results, 1e-9)

    def test_what_nobody_can_see(self):
        w = tensor(0.5).requires_grad_()
        value = fixed_point(lambda z: Scale.apply(z, w) + 1, GUESS).value
        with pytest.raises(RuntimeError, match="args="):
            value.sum().backward()
        # As an argument it is seen.
        value = fixed_point(lambda z, w: Scale.apply(z, w) + 1, GUESS, w).value
        value.sum().backward()
        assert w.grad is not None
        assert_close(w.grad, tensor(4.0 * GUESS.numel()), 1e-10)

    def test_one_that_is_returned_as_it_is(self):
        b = ARGS[1].clone().requires_grad_()
        for name in ("anderson", "newton", "newton-krylov"):
            value = fixed_point(lambda z: b, GUESS, solver=name).value
            assert_close(value.detach(), ARGS[1])
            (found,) = torch.autograd.grad(value.sum(), b)
            assert_close(found, torch.ones_like(b))


COMPILED = """
import torch
from parafix.core.torch import fixed_point

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
linear = torch.nn.Linear(4, 4)
x = torch.arange(12.0).reshape(3, 4) / 12
f = lambda z: 0.5 * torch.tanh(linear(z) + x)

def solve(f):
    return fixed_point(f, torch.zeros(3, 4), rtol=1e-13, atol=1e-13).value.sin()

def gradient(loss):
    return torch.autograd.grad(loss, linear.weight)[0]

expected = gradient(solve(f).sum())
whole = torch.compile(lambda: solve(f).sum(), backend="eager")
assert torch.allclose(gradient(whole()), expected, rtol=1e-12)
# What `fn` was compiled to is used in the steps.
only = torch.compile(f, backend="eager")
assert torch.allclose(gradient(solve(only).sum()), expected, rtol=1e-9)
"""


@pytest.mark.slow
def test_what_is_compiled():
    # By itself: the compiler cannot follow the checks of types in these tests.
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


def row_by_row(z, args):
    """A map whose bits do not depend on the size of the batch."""
    w, b, slope = args
    return slope * torch.tanh((w * z[:, None]).sum(-1) + b)


class TestBatches:
    """Of 64 samples: easy ones, a hard one, and one that becomes NaN."""

    samples = 64

    def problem(self):
        slope = torch.full((self.samples, 1), 0.7, dtype=DOUBLE)
        slope[5] = 1.4
        b = vectors(3, self.samples)
        return matrix(2, 0.9), b, slope

    def solve(self, args, make, guess=None):
        guess = torch.zeros_like(args[1]) if guess is None else guess
        solver = make(1e-10, 1e-10)
        return fixed_point(row_by_row, guess, args, solver=solver, throw=False)

    def arrays(self, solution):
        return solution.value, solution.result, solution.stats

    def at(self, solution, index):
        value, result, stats = self.arrays(solution)
        return value[index], result[index], {k: x[index] for k, x in stats.items()}

    @pytest.mark.parametrize("make", SOLVERS)
    def test_neighbours_change_no_bit(self, make):
        w, b, slope = self.problem()
        clean = self.solve((w, b, slope), make)
        steps = clean.stats["num_steps"]
        assert steps[5] > steps.median()
        others = [i for i in range(self.samples) if i != 9]
        for poison in (torch.nan, torch.inf, 1e6):
            poisoned = b.clone()
            poisoned[9, 3] = poison
            found = self.solve((w, poisoned, slope), make)
            assert_identical(self.at(found, others), self.at(clean, others))
            if poison is torch.nan:
                assert found.result[9] == RESULTS.nonfinite
        guess = torch.zeros_like(b)
        guess[9] = torch.nan
        found = self.solve((w, b, slope), make, guess)
        assert_identical(self.at(found, others), self.at(clean, others))
        assert found.result[9] == RESULTS.nonfinite
        assert found.stats["num_steps"][9] == 0

    @pytest.mark.parametrize("make", SOLVERS)
    def test_alone_and_permuted(self, make):
        w, b, slope = self.problem()
        together = self.solve((w, b, slope), make)
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(0))
        permuted = self.solve((w, b[order], slope[order]), make)
        assert_identical(self.arrays(permuted), self.at(together, order))
        for i in (0, 5, 9):
            alone = self.solve((w, b[i : i + 1], slope[i : i + 1]), make)
            assert_identical(self.arrays(alone), self.at(together, slice(i, i + 1)))

    @pytest.mark.parametrize("make", SOLVERS)
    def test_what_the_host_sees_at_once_changes_no_bit(self, make, monkeypatch):
        # Two numbers for a batch, or every sample looked at in every step.
        w, b, slope = self.problem()
        hopeless = b.clone()
        hopeless[9, 3] = torch.nan
        slope[11] = 40
        scales = tensor([[1.0], [1e-6], [1e5]]).repeat(22, 1)[: self.samples]
        cases = [(w, b, slope), (w, hopeless, slope), (w, b * scales, slope * scales)]
        cases += [(w, b[:1], slope[:1]), (w, b[5:6], slope[5:6])]
        # All end together.
        cases.append((w, b[:1].repeat(3, 1), slope[:1].repeat(3, 1)))
        guess = vectors(8, self.samples)
        guess[3] = torch.nan
        watched = [self.solve(case, make) for case in cases]
        watched.append(self.solve(cases[0], make, guess))
        monkeypatch.setattr(Watch, "all_go_on", lambda self, measured: False)
        monkeypatch.setattr(Watch, "improved", lambda self: None)
        monkeypatch.setattr(Watch, "all_move", lambda self, lengths: False)
        for solution, case in zip(watched, [*cases, cases[0]], strict=True):
            start = guess if solution is watched[-1] else None
            expected = self.solve(case, make, start)
            assert_identical(self.arrays(solution), self.arrays(expected))

    def test_with_products_of_matrices(self):
        # These round by the size of the batch, not by what is in it.
        w, b, _ = self.problem()
        f = lambda z, b: torch.tanh(z @ w.T + b)
        solve = lambda b: fixed_point(f, torch.zeros_like(b), b, throw=False)
        poisoned = b.clone()
        poisoned[9] = torch.nan
        clean, found = solve(b), solve(poisoned)
        others = [i for i in range(self.samples) if i != 9]
        assert_identical(self.at(found, others), self.at(clean, others))
        alone = solve(b[:1])
        assert_close(alone.value, clean.value[:1], 1e-10)
        assert (alone.stats["num_steps"] - clean.stats["num_steps"][:1]).abs() <= 1

    @pytest.mark.parametrize("adjoint", ["implicit", "one-step", "phantom"])
    def test_gradients_of_the_neighbours(self, adjoint):
        w, b, slope = self.problem()
        others = [i for i in range(self.samples) if i != 9]

        def gradient(b):
            b = b.clone().requires_grad_()
            value = fixed_point(
                row_by_row,
                torch.zeros_like(b),
                (w, b, slope),
                adjoint=adjoint,
                throw=False,
            ).value
            return torch.autograd.grad(value.sin().sum(), b)[0]

        poisoned = b.clone()
        poisoned[9, 3] = torch.nan
        clean, found = gradient(b), gradient(poisoned)
        assert torch.isfinite(clean).all()
        assert_identical(found[others], clean[others])


class TestLinearSolves:
    def solve(self, a, b, solver):
        return gmres(lambda v: (a * v[:, None]).sum(-1), b, solver)

    @pytest.mark.parametrize("restart", [3, 50])
    def test_gmres(self, restart):
        eye = torch.eye(SIZE, dtype=DOUBLE)
        a = torch.stack([eye - matrix(seed, 0.6) for seed in range(3)])
        b = vectors(4, 3)
        x, count, ok = self.solve(a, b, GMRES(restart=restart, max_steps=100))
        assert ok.all()
        assert_close(x, torch.linalg.solve(a, b), 1e-10)
        if restart > SIZE:
            assert (count == SIZE + 1).all()

    def test_gmres_restarts_beyond_some_size_only(self):
        # Eigenvalues all around zero: restarts after few products lead nowhere.
        size = 120
        random = np.random.default_rng(5)
        a = np.eye(size) - 3 * random.normal(size=(size, size)) / np.sqrt(size)
        a, b = tensor(a)[None], tensor(random.normal(size=(1, size)))
        _, _, ok = self.solve(a, b, GMRES(restart=20))
        assert not ok.any()
        x, count, ok = self.solve(a, b, GMRES())
        assert (bool(ok), int(count)) == (True, size + 1)
        assert_close(x, torch.linalg.solve(a, b), 1e-8)

    def test_gmres_stops_as_soon_as_it_may(self):
        # So many products as eigenvalues, and one to see what is left; none for zero.
        diagonals = tensor(
            [[1, 1, 2, 2, 5, 5], [2, 2, 2, 2, 2, 2], [1, 2, 3, 4, 5, 6], [1] * 6]
        )
        b = vectors(4, 4)
        b[3] = 0
        x, count, ok = self.solve(torch.diag_embed(diagonals), b, GMRES())
        assert ok.all()
        assert count.tolist() == [4, 2, 7, 0]
        assert_close(x, b / diagonals, 1e-11)

    def test_gmres_says_that_it_failed(self):
        a = torch.eye(SIZE, dtype=DOUBLE) * tensor([0, torch.nan, 1])[:, None, None]
        x, _, ok = self.solve(a, vectors(4, 3), GMRES())
        assert ok.tolist() == [False, False, True]
        assert_close(x[2], vectors(4, 3)[2])

    def test_one_that_fails(self):
        def f(z, x):
            return x * z - z**3 + 1 - x

        def loss(x, throw):
            guess = torch.zeros(len(x), 2, dtype=DOUBLE)
            return fixed_point(f, guess, x, throw=throw).value.sum()

        x = tensor([[0.5], [1.0], [-0.3]])
        other = tensor([[0.5], [0.2], [-0.3]])

        def by_backward(x, throw):
            x = x.clone().requires_grad_()
            return torch.autograd.grad(loss(x, throw), x)[0]

        for gradient in (by_backward, grad(loss)):
            with pytest.raises(RuntimeError, match="sample 1: The linear solve"):
                gradient(x, True)
            found = gradient(x, False)
            assert found.isnan().flatten().tolist() == [False, True, False]
            assert_identical(found[::2], gradient(other, False)[::2])


class TestFailures:
    def outcome(self, f, y0, sample=0, **options):
        solution = fixed_point(f, y0, throw=False, **options)
        with pytest.raises(RuntimeError) as error:
            fixed_point(f, y0, **options)
        assert solution.message(sample) in str(error.value)
        assert f"sample {sample}: " in str(error.value)
        return solution

    def test_too_few_steps(self):
        y0 = tensor([0.7390851332151607, 1.0])
        solution = self.outcome(torch.cos, y0, 1, max_steps=3)
        codes = [RESULTS.successful, RESULTS.max_steps_reached]
        assert solution.result.tolist() == codes
        assert solution.stats["num_steps"].tolist() == [1, 3]

    def test_the_lowest_residual_comes_back(self):
        # Overrelaxed iteration from a good point gets worse and worse.
        solver = FixedPoint(1e-9, 1e-9, damping=-1.5)
        solution = self.outcome(torch.cos, tensor([0.7]), solver=solver, max_steps=5)
        assert solution.value == tensor([0.7])

    def test_divergence(self):
        f = lambda z: 3 * z + 1
        y0 = torch.zeros(2, 2, dtype=DOUBLE)
        solution = self.outcome(f, y0, solver="fixed-point")
        assert (solution.result == RESULTS.diverged).all()
        assert_identical(solution.value, y0)

    def test_nonfinite(self):
        for y0 in ([[1.0, 1.0], [-1.0, 1.0]], [[1.0, 1.0], [torch.nan, 1.0]]):
            f = lambda z: torch.log(z + 0.5) + 0.5
            solution = self.outcome(f, tensor(y0), 1)
            assert solution.result[1] == RESULTS.nonfinite
        # Reached on the way, after points that were fine.
        f = lambda z: torch.log(z - 0.5)
        solution = self.outcome(f, tensor([5.0]), solver="fixed-point")
        assert solution.result == RESULTS.nonfinite
        assert torch.isfinite(solution.value).all()

    def test_stalling(self):
        # The least step of the dtype away from a point that is none.
        f = lambda z: z + torch.where(z > 1, -1e-17, 1e-17) * 1e3
        options = {"solver": "fixed-point", "rtol": 0.0, "atol": 1e-30}
        solution = self.outcome(f, tensor([100.0]), **options)
        assert solution.result == RESULTS.stalled

    def test_a_singular_jacobian(self):
        f = lambda z: z + tensor([1.0, 0.5])
        y0 = torch.zeros(1, 2, dtype=DOUBLE)
        solution = self.outcome(f, y0, solver="newton")
        assert solution.result == RESULTS.linear_solve_failed

    def test_under_transforms(self):
        # Linear: the gradient needs no value.
        loss = lambda b: fixed_point(
            lambda z, b: 3 * z + b, 0 * b.detach(), b, solver="fixed-point"
        ).value.sum()
        for transform in (grad, jacfwd, lambda f: vmap(grad(f))):
            with pytest.raises(RuntimeError, match="without bound"):
                transform(loss)(tensor([[1.0]]))
        b = tensor([1.0])
        solve = lambda b: (
            fixed_point(torch.cos, b, solver="newton", max_steps=1, throw=False).result
        )
        assert vmap(solve)(b[None]).tolist() == [[RESULTS.max_steps_reached]]
        unrolled = lambda b: (
            fixed_point(torch.cos, b, max_steps=2, adjoint="unrolled").value
        )
        with pytest.raises(RuntimeError, match="max_steps"):
            vmap(unrolled)(b[None])


class TestBadInput:
    @pytest.fixture(autouse=True)
    def _unchecked(self):
        before = jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", before)

    @pytest.mark.parametrize(
        ("error", "words", "change"),
        [
            (TypeError, "y0.*int64", {"y0": torch.zeros(2, SIZE, dtype=torch.int64)}),
            (TypeError, r"y0\[1\].*complex.*real", {"y0": (GUESS, GUESS * 1j)}),
            (TypeError, "y0.*axis 0", {"y0": tensor(1.0)}),
            (TypeError, "y0.*tuple", {"y0": [GUESS]}),
            (TypeError, r"y0\[1\].*3", {"y0": (GUESS, torch.zeros(3))}),
            (
                TypeError,
                r"fn.*float64\[2, 6\].*float64\[2, 3\]",
                {"fn": lambda z: z[:, :3]},
            ),
            (TypeError, "fn.*float32", {"fn": lambda z: z.float()}),
            (TypeError, "fn.*structure", {"fn": lambda z: (z, z)}),
            (ValueError, "rtol", {"rtol": -1.0}),
            (TypeError, "atol", {"atol": "small"}),
            (ValueError, "max_steps", {"max_steps": 0}),
            (TypeError, "max_steps", {"max_steps": 1.5}),
            (LookupError, "solver='andersen'.*anderson", {"solver": "andersen"}),
            (LookupError, "adjoint='implict'.*implicit", {"adjoint": "implict"}),
            (TypeError, "solver", {"solver": GMRES()}),
            (TypeError, "adjoint", {"adjoint": GMRES()}),
            (ValueError, "rtol.*own", {"solver": Anderson(1e-3, 1e-3), "rtol": 0.1}),
        ],
    )
    def test_of_a_verb(self, error, words, change):
        arguments = {"fn": torch.tanh, "y0": GUESS, **change}
        with pytest.raises(error, match=f"(?s){words}"):
            fixed_point(**arguments)

    @pytest.mark.parametrize(
        ("words", "make"),
        [
            ("history", lambda: Anderson(0.1, 0.1, history=0)),
            ("ridge", lambda: Anderson(0.1, 0.1, ridge=-1.0)),
            ("memory", lambda: Broyden(0.1, 0.1, memory=0)),
            ("kind", lambda: Broyden(0.1, 0.1, kind="ugly")),  # pyright: ignore
            ("rtol", lambda: Newton(-0.1, 0.1)),
            ("steps", lambda: PhantomAdjoint(steps=0)),
            ("restart", lambda: GMRES(restart=0)),
            ("restart", lambda: NewtonKrylov(0.1, 0.1, restart=0)),
        ],
    )
    def test_of_a_constructor(self, words, make):
        with pytest.raises((ValueError, TypeError), match=words):
            make()


def test_steps_do_not_depend_on_units():
    counts = set()
    for scale, make in itertools.product((1.0, 1e-9, 1e3), (Anderson,)):
        f = lambda z, scale=scale: scale * cell(z / scale, ARGS)
        solution = fixed_point(f, GUESS, solver=make(1e-8, 1e-30))
        assert_close(solution.value / scale, by_iteration(*ARGS)[0], 1e-6)
        counts.add(tuple(solution.stats["num_steps"].tolist()))
    assert len(counts) == 1
