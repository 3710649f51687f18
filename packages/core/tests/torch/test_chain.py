import dataclasses
from typing import ClassVar

import jaxtyping
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, strategies as st

import parafix.core
from parafix.core.testing.torch import (
    assert_close,
    assert_identical,
    dense_affine_scan,
    directional_derivative,
    largest_bytes,
)
from parafix.core.torch import (
    AbstractSweep,
    Anderson,
    Chain,
    ChainAdjoint,
    fixed_point,
    Jacobi,
    jacobian,
    Leaf,
    OneStepAdjoint,
    over_time,
    RESULTS,
    Sequential,
    solve_chain,
)


DOUBLE = torch.float64
LENGTH, SAMPLES, SIZE = 9, 3, 2
func = torch.func


@dataclasses.dataclass(frozen=True)
class Newton(AbstractSweep):
    """A sweep from outside the library, with the whole Jacobian."""

    newton: ClassVar[bool] = True

    def transition(self, step, z, x):
        return jacobian(step, z, x)

    def num_linear(self, size):
        return size


@dataclasses.dataclass(frozen=True)
class Picard(AbstractSweep):
    """A diagonal transition: the identity."""

    def transition(self, step, z, x):
        return step(z, x), torch.ones_like(z)

    def num_linear(self, size):
        return 0


SWEEPS = {
    "jacobi": Jacobi(1e-13, 1e-13),
    "chunked jacobi": Jacobi(1e-13, 1e-13, chunk=4),
    "newton": Newton(1e-13, 1e-13),
    "chunked newton": Newton(1e-13, 1e-13, chunk=2),
    "picard": Picard(1e-13, 1e-13),
}
# The ways in which a step may be given.
FORMS = ("one time", "all times", "formula")


def tanh_step(weights, z, x):
    return torch.tanh(z @ weights.T + x)


def tanh_problem(length=LENGTH, samples=SAMPLES):
    random = np.random.default_rng(0)
    shapes = (SIZE, SIZE), (samples, SIZE), (length, samples, SIZE)
    return tuple(torch.tensor(random.normal(size=shape)) for shape in shapes)


def chain_of(weights, init, xs, form="one time", **options):
    step = lambda z, x: tanh_step(weights, z, x)

    def formula(z, x):
        f = step(z, x)
        return f, (1 - f**2).unsqueeze(-1) * weights

    if form != "one time":
        options["broadcasts"] = True
    if form == "formula":
        options["linearised"] = formula
    return Chain(step, init, xs, len(xs), **options)


def states_by_loop(weights, init, xs):
    states = []
    for x in xs:
        init = tanh_step(weights, init, x)
        states.append(init)
    return torch.stack(states)


def requiring(arguments):
    return tuple(x.clone().requires_grad_() for x in arguments)


class TestValues:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("name", SWEEPS)
    def test_agree_with_a_loop(self, name, form):
        arguments = tanh_problem()
        solution = solve_chain(chain_of(*arguments, form), solver=SWEEPS[name])
        assert (solution.result == RESULTS.successful).all()
        assert_close(solution.value, states_by_loop(*arguments))
        assert (solution.stats["converged_prefix"] == LENGTH).all()
        assert (solution.stats["residual"] <= 1).all()
        assert (solution.stats["num_steps"] <= LENGTH).all()
        assert solution.result.shape == (SAMPLES,)
        assert {x.shape for x in solution.stats.values()} == {(SAMPLES,)}

    @pytest.mark.parametrize("length", [1, 2, 3])
    def test_of_short_chains(self, length):
        arguments = tanh_problem(length)
        for solver in ("jacobi", "sequential", SWEEPS["newton"]):
            solution = solve_chain(chain_of(*arguments), solver=solver)
            assert_close(solution.value, states_by_loop(*arguments))
            assert (solution.result == RESULTS.successful).all()

    @pytest.mark.parametrize(
        ("length", "samples", "size"), [(0, 3, 2), (4, 0, 2), (4, 3, 0)]
    )
    def test_of_what_is_empty(self, length, samples, size):
        init = torch.zeros(samples, size, requires_grad=True)
        for solver in ("jacobi", "sequential", SWEEPS["newton"]):
            problem = Chain(lambda z, x: 2 * z, init, None, length)
            solution = solve_chain(problem, solver=solver)
            assert solution.value.shape == (length, samples, size)
            assert solution.result.shape == (samples,)
            assert (solution.result == RESULTS.successful).all()

    def test_a_sequential_solve_is_the_loop(self):
        arguments = tanh_problem()
        solution = solve_chain(chain_of(*arguments), solver=Sequential(1e-9, 1e-9))
        assert_identical(solution.value, states_by_loop(*arguments))
        assert (solution.stats["residual"] < 1e-5).all()

    def test_a_step_that_works_in_place_is_looped_over(self):
        weights, init, xs = tanh_problem()
        kept = init.clone()
        step = lambda z, x: z.copy_(tanh_step(weights, z, x))
        value = solve_chain(Chain(step, init, xs, LENGTH), solver="sequential").value
        assert_identical(value, states_by_loop(weights, init, xs))
        assert_identical(init, kept)

    def test_a_linear_chain_is_one_update_for_newton(self):
        random = np.random.default_rng(1)
        a = torch.tensor(random.normal(size=(20, 1, 2, 2))) / 2
        b = torch.tensor(random.normal(size=(20, 3, 2)))
        init = torch.ones(3, 2, dtype=DOUBLE)
        step = lambda z, x: (x[0] @ z[..., None])[..., 0] + x[1]
        for broadcasts in (False, True):
            problem = Chain(step, init, (a, b), 20, broadcasts=broadcasts)
            solution = solve_chain(problem, solver=SWEEPS["newton"])
            expected = dense_affine_scan(a.expand(20, 3, 2, 2), b, init)
            assert_close(solution.value, expected)
            assert (solution.stats["num_steps"] <= 2).all()
            # Two pulls in every sweep, and for the growth of errors.
            linear = (solution.stats["num_steps"] + 1) * 2
            assert_identical(solution.stats["num_linear"], linear)

    @pytest.mark.parametrize("growth", [True, False])
    @pytest.mark.parametrize("name", ["jacobi", "newton", "sequential"])
    def test_what_was_done_is_counted(self, name, growth, monkeypatch):
        evals, pulls = [], []
        grad = torch.autograd.grad

        def pull(outputs, inputs, cotangent, **options):
            pulls.append(cotangent.shape[0])
            return grad(outputs, inputs, cotangent, **options)

        def step(z, x):
            evals.append(z.shape[0])
            return tanh_step(weights, z, x)

        monkeypatch.setattr(torch.autograd, "grad", pull)
        weights, init, xs = tanh_problem(samples=1)
        with torch.no_grad():
            stats = solve_chain(
                Chain(step, init, xs, LENGTH, broadcasts=True),
                solver=SWEEPS.get(name, name),
                growth=growth,
            ).stats
        # What treats all times at once.
        assert stats["num_evals"] == evals.count(LENGTH)
        assert stats["num_linear"] == pulls.count(LENGTH) > 0
        assert ("lyapunov_exponent" in stats) == growth

    def test_jacobi_needs_as_many_sweeps_as_the_chain_remembers(self):
        # Only three of the inputs matter for a state, whatever the length.
        step = lambda z, x: torch.cat([x, z[:, :2]], 1)
        xs = torch.sin(torch.arange(50.0, dtype=DOUBLE))[:, None, None]
        init = torch.zeros(1, 3, dtype=DOUBLE)
        solution = solve_chain(Chain(step, init, xs, 50))
        assert solution.stats["num_steps"] == 4
        assert_identical(solution.value[2:, 0, 2], xs[:-2, 0, 0])

    def test_an_integer_as_input(self):
        step = lambda z, n: 0.5 * z + n.to(z.dtype)
        problem = Chain(step, torch.ones(1, 1), torch.arange(3), 3)
        expected = torch.tensor([0.5, 1.25, 2.625]).reshape(3, 1, 1)
        assert_close(solve_chain(problem).value, expected)

    def test_steps_see_the_shapes_of_a_loop(self):
        seen = []

        def step(z, x):
            seen.append((tuple(z.shape), tuple(x["a"].shape), x["b"]))
            return 0.5 * z + x["a"]

        xs = {"a": torch.ones(5, 3, 2), "b": None}
        solve_chain(Chain(step, torch.ones(3, 2), xs, 5))
        assert set(seen) == {((3, 2), (3, 2), None)}

    @pytest.mark.parametrize("make", [torch.nn.GRUCell, torch.nn.RNNCell])
    def test_cells_of_torch(self, make):
        torch.manual_seed(0)
        cell = make(2, 3).double()
        init, xs = torch.zeros(2, 3, dtype=DOUBLE), torch.randn(20, 2, 2, dtype=DOUBLE)

        def gradients(states):
            return states, torch.autograd.grad(states.sin().sum(), cell.parameters())

        chain = Chain(lambda z, x: cell(x, z), init, xs, 20)
        actual = gradients(solve_chain(chain, solver=SWEEPS["newton"]).value)
        expected = gradients(solve_chain(chain, solver="sequential").value)
        assert_close(actual, expected)

    @given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 4))
    def test_whatever_the_numbers(self, seed, length, size):
        random = np.random.default_rng(seed)
        weights, xs = (
            torch.tensor(random.normal(size=shape))
            for shape in ((size, size), (length, 2, size))
        )
        init = torch.tensor(random.normal(size=(2, size)))
        solution = solve_chain(
            chain_of(weights / size, init, xs), solver=SWEEPS["newton"], throw=False
        )
        expected = states_by_loop(weights / size, init, xs)
        good = solution.result == RESULTS.successful
        assert good.any()
        assert_close(solution.value[:, good], expected[:, good], 1e-9)


class TestWindows:
    @pytest.mark.parametrize("window", [1, 4, 9, 20])
    def test_change_only_rounding(self, window):
        arguments = tanh_problem()
        solution = solve_chain(
            chain_of(*arguments), solver=SWEEPS["newton"], window=window
        )
        assert_close(solution.value, states_by_loop(*arguments))
        assert (solution.stats["converged_prefix"] == LENGTH).all()
        assert (solution.stats["num_steps"] >= -(-LENGTH // window)).all()

    def test_the_first_that_failed_speaks(self):
        step = lambda z, t: torch.where(t == 5, torch.nan, 0.5 * z + t)
        xs, init = torch.arange(12.0, dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE)
        for offset, stride, position in ((0, 1, 5), (11, -1, 6), (100, 10, 150)):
            problem = Chain(step, init, xs, 12, offset=offset, stride=stride)
            solution = solve_chain(problem, window=4, throw=False)
            assert solution.result == RESULTS.nonfinite
            assert solution.stats["converged_prefix"] == 5
            assert solution.message().endswith(f"First bad position: {position}.")
            assert solution.value[:5].isfinite().all()
            assert solution.value[5:].isnan().all()

    @pytest.mark.parametrize("window", [1, 10])
    def test_do_not_make_a_sum_look_unstable(self, window):
        # Rounding errors of one sign in all windows would add up to a false alarm.
        xs, init = torch.ones(1000, 1, 1), torch.zeros(1, 1)
        problem = Chain(lambda z, x: z + x, init, xs, 1000, broadcasts=True)
        options = {"solver": Newton(1e-5, 1e-5), "throw": False}
        whole = solve_chain(problem, **options).stats["error_estimate"]
        parts = solve_chain(problem, window=window, **options).stats["error_estimate"]
        assert whole / 4 < parts < 4 * whole

    def test_bound_the_largest_tensor_of_a_gradient(self):
        length, size = 2048, 16
        random = torch.Generator().manual_seed(0)
        weights = torch.randn(size, size, generator=random) / 8
        xs = torch.randn(length, 1, size, generator=random)
        weights.requires_grad_()

        def gradient(window):
            chain = chain_of(weights, torch.zeros(1, size), xs, "formula")
            value = solve_chain(chain, solver=Newton(1e-5, 1e-5), window=window).value
            return torch.autograd.grad(value.sum(), weights)

        states, blocks = 4 * length * size, 4 * length * size**2
        assert largest_bytes(gradient, None) >= blocks
        assert largest_bytes(gradient, 64) <= 2 * states


def implicit_gradient(weights, init, xs, cotangent):
    """The gradient by sparse linear algebra, from the states of the loop."""
    z = states_by_loop(weights, init, xs).numpy()
    weights, init, cotangent = (x.numpy() for x in (weights, init, cotangent))
    length = len(z)
    previous = np.concatenate([init[None], z[:-1]])
    slopes = 1 - z**2
    g_xs, g_init = np.zeros_like(z), np.zeros_like(init)
    for b in range(z.shape[1]):
        blocks = slopes[:, b, :, None] * weights
        matrix = scipy.sparse.eye(length * SIZE, format="lil")
        matrix[SIZE:, :-SIZE] -= scipy.sparse.block_diag(blocks[1:])
        adjoint = scipy.sparse.linalg.spsolve(
            matrix.T.tocsc(), cotangent[:, b].ravel()
        ).reshape(length, SIZE)
        g_xs[:, b] = slopes[:, b] * adjoint
        g_init[b] = blocks[0].T @ adjoint[0]
    g_weights = np.einsum("tbi,tbj->ij", g_xs, previous)
    return tuple(map(torch.tensor, (g_weights, g_init, g_xs)))


def derivatives(states):
    """All modes of differentiation of a loss over `states(weights, init, xs)`."""
    loss = lambda *arguments: torch.sin(states(*arguments)).sum()
    arguments = tanh_problem(4, 2)
    weights, init, xs = arguments
    tangents = tuple(x.cos() for x in arguments)
    of_weights = lambda weights: loss(weights, init, xs)
    inits = torch.stack([init, 2 * init, -init])
    many = torch.stack([weights, weights / 2, -weights])
    return {
        "grad": func.grad(loss, (0, 1, 2))(*arguments),
        "jvp": func.jvp(loss, arguments, tangents),
        "hessian": func.hessian(loss, (0, 1, 2))(*arguments),
        "reverse over reverse": func.jacrev(func.jacrev(of_weights))(weights),
        "forward over forward": func.jacfwd(func.jacfwd(of_weights))(weights),
        "reverse over forward": func.jacrev(func.jacfwd(of_weights))(weights),
        "vmap": func.vmap(lambda init: loss(weights, init, xs))(inits),
        "vmap of grad": func.vmap(func.grad(loss, (0, 1)), (0, 0, None))(
            many, inits, xs
        ),
        "grad of vmap": func.grad(
            lambda inits: func.vmap(lambda x: loss(weights, x, xs))(inits).sum()
        )(inits),
        "vmap in vmap": func.vmap(
            lambda w: func.vmap(lambda x: func.grad(loss)(w, init, x))(
                torch.stack([xs, -xs])
            )
        )(many),
    }


class TestAdjoint:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        ("adjoint", "window"),
        [
            ("implicit", None),
            ("implicit", 4),
            (ChainAdjoint(chunk=1), None),
            (ChainAdjoint(scan="associative", chunk=4), None),
            (ChainAdjoint(scan="blocked", chunk=100), 4),
        ],
        ids=["implicit", "windows", "steps", "chunks", "whole"],
    )
    def test_agrees_with_sparse_linear_algebra(self, adjoint, window, form):
        arguments = tanh_problem()
        z = states_by_loop(*arguments)
        variables = requiring(arguments)
        solution = solve_chain(
            chain_of(*variables, form),
            solver=SWEEPS["jacobi"],
            adjoint=adjoint,
            window=window,
        )
        actual = torch.autograd.grad(torch.sin(solution.value).sum(), variables)
        assert_close(actual, implicit_gradient(*arguments, z.cos()))

    @pytest.mark.parametrize("form", FORMS)
    def test_agrees_with_the_loop_in_every_mode(self, form):
        def states(*arguments):
            return solve_chain(
                chain_of(*arguments, form), solver=SWEEPS["newton"]
            ).value

        assert_close(derivatives(states), derivatives(states_by_loop))

    @pytest.mark.parametrize(
        ("window", "adjoint"),
        [(None, "implicit"), (3, "implicit"), (3, ChainAdjoint(chunk=2))],
    )
    def test_of_third_order_by_backward(self, window, adjoint):
        def third(states):
            variables = requiring(tanh_problem(5))
            out = states(*variables)
            for _ in range(3):
                grads = torch.autograd.grad(
                    torch.sin(out).sum(), variables, create_graph=True
                )
                out = torch.cat([g.reshape(-1) for g in grads])
            return grads

        def states(*variables):
            chain = chain_of(*variables)
            solver = SWEEPS["newton"]
            return solve_chain(
                chain, solver=solver, window=window, adjoint=adjoint
            ).value

        assert_close(third(states), third(states_by_loop))

    def test_agrees_with_differences(self):
        arguments = tanh_problem()
        direction = tuple(torch.sin(3 * x) + 0.1 for x in arguments)

        def loss(arguments):
            return solve_chain(chain_of(*arguments)).value.sin().sum()

        def gradient(arguments, differentiable=False):
            variables = requiring(arguments)
            return variables, torch.autograd.grad(
                loss(variables), variables, create_graph=differentiable
            )

        def along(grads):
            return sum((g * v).sum() for g, v in zip(grads, direction, strict=True))

        _, grads = gradient(arguments)
        expected = directional_derivative(loss, arguments, direction, 3e-3)
        assert_close(along(grads), expected, 1e-9)
        # And twice.
        variables, grads = gradient(arguments, True)
        second = along(torch.autograd.grad(along(grads), variables))
        slope = lambda point: along(gradient(point)[1])
        expected = directional_derivative(slope, arguments, direction, 3e-3)
        assert_close(second, expected, 1e-9)

    def test_guess_and_statistics_have_no_gradient(self):
        arguments = requiring(tanh_problem())
        guess = torch.ones(LENGTH, SAMPLES, SIZE, dtype=DOUBLE, requires_grad=True)
        solution = solve_chain(chain_of(*arguments), guess=guess)
        assert not any(x.requires_grad for x in solution.stats.values())
        (of_guess,) = torch.autograd.grad(solution.value.sum(), guess)
        assert_identical(of_guess, torch.zeros_like(guess))

    def test_of_modules_and_what_else_is_closed_over(self):
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 2).double()
        scale = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
        init = torch.zeros(2, 2, dtype=DOUBLE)
        step = lambda z, x: torch.tanh(layer(z) * scale + 0.3)

        def gradients(solver):
            value = solve_chain(Chain(step, init, None, 5), solver=solver).value
            variables = (*layer.parameters(), scale)
            return torch.autograd.grad(value.sin().sum(), variables)

        assert_close(gradients(SWEEPS["newton"]), gradients("sequential"))

    def test_of_inputs_that_are_also_closed_over(self):
        xs = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(6, 1, 1).requires_grad_()
        init = torch.zeros(1, 1, dtype=DOUBLE)
        for broadcasts in (False, True):
            step = lambda z, x: torch.tanh(0.5 * z + x + xs.mean())
            chain = Chain(step, init, xs, 6, broadcasts=broadcasts)
            actual, expected = (
                torch.autograd.grad(solve_chain(chain, solver=solver).value.sum(), xs)
                for solver in (SWEEPS["newton"], "sequential")
            )
            assert_close(actual, expected)

    def test_of_what_is_computed_from_variables_before(self):
        weight = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
        shift, init = torch.sin(weight), torch.zeros(1, 1, dtype=DOUBLE)
        chain = Chain(lambda z, x: z * 0.5 + shift, init, None, 4)
        actual, expected = (
            torch.autograd.grad(
                solve_chain(chain, solver=solver).value.sum(), weight, retain_graph=True
            )
            for solver in (SWEEPS["newton"], "sequential")
        )
        assert_close(actual, expected)

    def test_of_what_is_not_seen_is_an_error(self):
        class Hidden(torch.autograd.Function):
            @staticmethod
            def forward(z, weight):
                return z * weight

            @staticmethod
            def setup_context(ctx, inputs, output):
                ctx.save_for_backward(*inputs)

            @staticmethod
            def backward(ctx, g):
                z, weight = ctx.saved_tensors
                return g * weight, (g * z).sum()

        weight = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
        init = torch.ones(1, 1, dtype=DOUBLE)
        step = lambda z, x: Hidden.apply(z, weight)
        chain = Chain(step, init, None, 4, broadcasts=True)
        for create_graph in (False, True):
            with pytest.raises(RuntimeError, match="not seen when it was called"):
                torch.autograd.grad(
                    solve_chain(chain).value.sum(), weight, create_graph=create_graph
                )

    def test_blocks_are_not_kept_between_the_passes(self):
        kept = []
        pack = lambda x: kept.append(x.numel()) or x
        weights, init, xs = requiring(tanh_problem(200))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            chain = chain_of(weights, init, xs, "formula")
            solve_chain(chain, solver=SWEEPS["newton"])
        # The states and the inputs, and never n times as much.
        assert max(kept) == xs.numel()


class TestBatches:
    def test_every_sample_stops_by_itself(self):
        # How far an entry is copied is how many sweeps a sample needs.
        memory = torch.tensor([0, 1, 3])
        entries = torch.arange(4)
        xs = torch.arange(1.0, 11.0, dtype=DOUBLE)[:, None, None].expand(10, 3, 4)

        def solve(some):
            def step(z, x):
                return torch.where(memory[some, None] > entries, z.roll(1, -1), x)

            init = torch.zeros(len(some), 4, dtype=DOUBLE)
            chain = Chain(step, init, xs[:, some], 10)
            return solve_chain(chain).stats["num_steps"].tolist()

        steps = [solve([i])[0] for i in range(3)]
        assert solve([0, 1, 2]) == steps
        assert steps[0] < steps[2]

    def solve(self, arguments, solver, **options):
        """Values, gradients and statistics, of a loss that keeps samples apart."""
        weights, init, xs = requiring(arguments)
        # Per sample, so that even gradients of weights belong to one.
        weights = weights.detach().expand(init.shape[0], SIZE, SIZE).clone()
        weights.requires_grad_()
        step = lambda z, x: torch.tanh((weights * z.unsqueeze(-2)).sum(-1) + x)
        chain = Chain(step, init, xs, len(xs), broadcasts=True)
        solution = solve_chain(chain, solver=solver, throw=False, **options)
        grads = torch.autograd.grad(solution.value.sin().sum(), (weights, init, xs))
        of_sample = (solution.value, grads[2])
        return (
            [x.movedim(1, 0) for x in of_sample]
            + [grads[0], grads[1], solution.result]
            + list(solution.stats.values())
        )

    @pytest.mark.parametrize("name", SWEEPS)
    @pytest.mark.parametrize("window", [None, 10])
    def test_neighbours_change_no_bit(self, name, window):
        weights, init, xs = tanh_problem(24, 64)
        calm = self.solve((weights, init, xs), SWEEPS[name], window=window)
        init, xs = init.clone(), xs.clone()
        # One that needs more sweeps, one that is not finite, one that overflows.
        init[3], xs[:, 3] = 1e3, 1e-3
        xs[7, 9] = torch.nan
        xs[5, 11] = 1e308
        rough = self.solve((weights, init, xs), SWEEPS[name], window=window)
        others = [i for i in range(64) if i not in (3, 9, 11)]
        for x, y in zip(rough, calm, strict=True):
            assert_identical(x[others], y[others])
        assert rough[4][9] == RESULTS.nonfinite

    def test_permutations_change_no_bit(self):
        weights, init, xs = tanh_problem(24, 64)
        xs[7, 9] = torch.nan
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        first = self.solve((weights, init, xs), SWEEPS["newton"])
        second = self.solve(
            (weights, init[order], xs[:, order].contiguous()), SWEEPS["newton"]
        )
        for x, y in zip(first, second, strict=True):
            assert_identical(x[order], y)

    def test_other_batch_sizes_change_rounding(self):
        arguments = tanh_problem(24, 64)
        weights, init, xs = arguments
        whole = self.solve(arguments, SWEEPS["newton"])
        part = self.solve((weights, init[:5], xs[:, :5]), SWEEPS["newton"])
        for x, y in zip(whole[:4], part[:4], strict=True):
            assert_close(x[:5], y, 1e-13)
        assert_identical(whole[4][:5], part[4])


class TestFailures:
    def test_leaves_are_named_in_the_order_of_the_state(self):
        leaves = tuple(
            Leaf(name, size, 2e-16)
            for name, size in (("position", 2), ("speed", 1), ("age", 2))
        )
        names = ((0, "position"), (2, "speed"), (3, "age"), (4, "age"))
        entries = torch.tensor([entry for entry, _ in names])
        bad = torch.arange(5) == entries[:, None]
        step = lambda z, t: torch.where(bad & (t == 3), torch.nan, 0.5 * z)
        init = torch.ones(4, 5, dtype=DOUBLE)
        problem = Chain(step, init, torch.arange(6), 6, leaves=leaves)
        for solver in ("jacobi", SWEEPS["newton"]):
            solution = solve_chain(problem, solver=solver, throw=False)
            for sample, (_, name) in enumerate(names):
                message = solution.message(sample)
                assert message.endswith(f"position: 3, leaf {name}.")

    @pytest.mark.parametrize("grad", [True, False])
    def test_are_raised_with_their_place(self, grad):
        step = lambda z, t: torch.where(t == 3, torch.inf, 0.5 * z)
        init = torch.ones(1, 1, requires_grad=grad)
        problem = Chain(step, init, torch.arange(6), 6)
        with pytest.raises(RuntimeError, match="First bad position: 3"):
            solve_chain(problem)

    def test_are_raised_under_transforms(self):
        step = lambda z, t: torch.where(t == 3, torch.nan, 0.5 * z)
        loss = lambda init: solve_chain(
            Chain(step, init, torch.arange(6), 6)
        ).value.sum()
        for call in (func.grad(loss), lambda init: func.vmap(loss)(init[None])):
            with pytest.raises(RuntimeError, match="First bad position: 3"):
                call(torch.ones(1, 1))

    @pytest.mark.parametrize("name", ["jacobi", "newton", "picard"])
    @pytest.mark.parametrize("sweeps", [1, 5])
    def test_the_first_states_are_final(self, name, sweeps):
        arguments = tanh_problem()
        expected = states_by_loop(*arguments)
        shape = (LENGTH, SAMPLES, SIZE)
        for value in (0.0, 1e6, torch.nan, -1e300):
            guess = torch.full(shape, value, dtype=DOUBLE)
            solution = solve_chain(
                chain_of(*arguments),
                solver=SWEEPS[name],
                guess=guess,
                max_steps=sweeps,
                throw=False,
            )
            assert_close(solution.value[:sweeps], expected[:sweeps], 1e-15)
            assert solution.value.isfinite().all()
            prefix = solution.stats["converged_prefix"]
            assert (prefix >= sweeps).all()
            for b, right in enumerate(prefix.tolist()):
                exact = (solution.value - expected)[:, b].abs().max() < 1e-11
                success = solution.result[b] == RESULTS.successful
                assert exact or not success
                assert_close(solution.value[:right, b], expected[:right, b], 1e-11)

    def test_a_nan_in_the_guess_is_no_failure(self):
        arguments = tanh_problem()
        guess = torch.full((LENGTH, SAMPLES, SIZE), torch.nan, dtype=DOUBLE)
        for solver in ("jacobi", SWEEPS["newton"]):
            solution = solve_chain(chain_of(*arguments), solver=solver, guess=guess)
            assert_close(solution.value, states_by_loop(*arguments))

    @pytest.mark.parametrize("name", ["jacobi", "newton"])
    def test_an_unstable_chain_is_no_success(self, name):
        step = lambda z, x: 3.9 * z * (1 - z)
        problem = Chain(step, torch.full((2, 1), 0.3, dtype=DOUBLE), None, 150)
        exact = solve_chain(problem, solver=SWEEPS[name], throw=False)
        for guess in (None, exact.value):
            solution = solve_chain(
                problem, solver=SWEEPS[name], guess=guess, throw=False
            )
            assert (solution.result == RESULTS.ill_conditioned).all()
            assert (solution.stats["error_estimate"] > 1).all()

    @pytest.mark.parametrize("name", ["jacobi", "newton", "sequential"])
    def test_inference_mode_hides_none(self, name):
        solver = SWEEPS.get(name, name)
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                # Made there: states, inputs, and what the step closes over.
                rate = torch.full((1,), 3.9, dtype=DOUBLE)
                xs = torch.zeros(150, 2, 1, dtype=DOUBLE)
                problem = Chain(
                    lambda z, x: rate * z * (1 - z) + x,  # noqa: B023
                    torch.full((2, 1), 0.3, dtype=DOUBLE),
                    xs,
                    150,
                )
                solution = solve_chain(problem, solver=solver, throw=False)
                assert problem.has_tangent
            sequential = name == "sequential"
            code = RESULTS.successful if sequential else RESULTS.ill_conditioned
            assert (solution.result == code).all()
            assert (solution.stats["error_estimate"] > 1).all()
            assert (solution.stats["lyapunov_exponent"] > 0.4).all()

    def test_inference_mode_is_no_place_for_a_jacobian(self):
        z, xs = torch.ones(3, 1, 2), torch.ones(3, 1, 2)
        with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
            jacobian(lambda z, x: torch.tanh(z + x), z, xs)

    def test_a_slow_chain_is_solved_beyond_its_residual(self):
        # Residuals of 1e-6 add up to an error of 1e-3 where a chain forgets slowly.
        step = lambda z, x: z + 1e-3 * (x - z)
        init = torch.ones(1, 1, dtype=DOUBLE)
        xs = torch.zeros(400, 1, 1, dtype=DOUBLE)
        problem = Chain(step, init, xs, 400, broadcasts=True)
        guess = (1 - 0.9e-3) ** torch.arange(1.0, 401.0, dtype=DOUBLE)[:, None, None]
        solution = solve_chain(problem, guess=guess, rtol=1e-3, atol=0.0, throw=False)
        expected = solve_chain(problem, solver="sequential").value
        within = ((solution.value - expected).abs() <= 1.1e-3 * expected.abs()).all()
        assert within
        assert solution.result == RESULTS.successful
        # One certificate found it too far away, another that it was there.
        assert solution.stats["num_evals"] > solution.stats["num_steps"] + 1


class TestNarrowDtypes:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("form", FORMS)
    def test_states(self, dtype, form):
        weights, init, xs = (x.to(dtype) / 2 for x in tanh_problem(20))
        weights.requires_grad_()
        for solver in ("jacobi", "newton"):
            made = {"jacobi": Jacobi, "newton": Newton}[solver]
            tolerance = torch.finfo(dtype).eps ** 0.75
            chain = chain_of(weights, init, xs, form)
            solution = solve_chain(chain, solver=made(tolerance, tolerance))
            assert solution.value.dtype == dtype
            expected = solve_chain(chain, solver="sequential").value
            assert_close(solution.value, expected, 4 * tolerance)
            actual, wanted = (
                torch.autograd.grad(x.sum(), weights)[0]
                for x in (solution.value, expected)
            )
            assert actual.dtype == dtype
            assert_close(actual, wanted, 8 * tolerance)

    @pytest.mark.parametrize("solver", ["jacobi", "sequential"])
    def test_autocast(self, solver):
        torch.manual_seed(0)
        layer, xs = torch.nn.Linear(3, 3), torch.randn(30, 2, 3)
        step = lambda z, x: torch.tanh(layer(z) / 2 + x)
        chain = Chain(step, torch.zeros(2, 3), xs, 30)
        with torch.autocast("cpu", torch.bfloat16):
            solution = solve_chain(chain, solver=solver)
            value = solution.value
        assert (solution.result == RESULTS.successful).all()
        assert (solution.stats["num_steps"] < 30).all() or solver == "sequential"
        # What is not under autocast differs by the rounding of bfloat16.
        expected = solve_chain(chain, solver="sequential").value
        assert_close(value.float(), expected, 0.05)
        actual, wanted = (
            torch.autograd.grad(x.sum(), layer.weight)[0] for x in (value, expected)
        )
        assert_close(actual, wanted, 0.05)


class TestJacobian:
    @pytest.mark.parametrize("form", FORMS)
    def test_agrees_with_the_formula(self, form):
        weights, init, xs = tanh_problem()
        chain = chain_of(weights, init, xs, form)
        z = states_by_loop(weights, init, xs)
        f, a = jacobian(chain.at_all_times, z, xs)
        assert_close(f, torch.tanh(z @ weights.T + xs))
        assert_close(a, (1 - f**2)[..., None] * weights)

    def test_can_be_differentiated(self):
        weights, init, xs = tanh_problem()

        def loss(z):
            _, a = jacobian(lambda z, x: tanh_step(weights, z, x), z, xs)
            return (a**2).sum()

        z = xs.clone().requires_grad_()
        (actual,) = torch.autograd.grad(loss(z), z)
        direction = torch.cos(z).detach()
        expected = directional_derivative(loss, z.detach(), direction)
        assert_close((actual * direction).sum(), expected, 1e-9)
        assert_close(func.grad(loss)(z.detach()), actual)


def test_over_time_keeps_the_structure():
    def fn(x, y):
        return {"sum": x["a"] + 1, "none": None, "number": 3.0, "y": y}

    xs = {"a": torch.arange(6.0).reshape(3, 2), "b": None}
    out = over_time(fn, xs, torch.arange(3))
    expected = {
        "sum": xs["a"] + 1,
        "none": None,
        "number": torch.full((3,), 3.0),
        "y": torch.arange(3),
    }
    assert_identical(out, expected)


class TestArguments:
    def problem(self):
        return chain_of(*tanh_problem())

    @pytest.fixture(autouse=True)
    def unchecked(self):
        # What is wrong is to be found by the library itself.
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)

    def test_inputs_of_another_length(self):
        with pytest.raises(ValueError, match="`xs`.*`length` = 4.*\\(5, 2\\)"):
            Chain(lambda z, x: z, torch.ones(1, 2), torch.ones(5, 2), 4)

    def test_inputs_that_are_no_tensors(self):
        with pytest.raises(TypeError, match="`xs`.*tensor.*3"):
            Chain(lambda z, x: z, torch.ones(1, 2), [3], 4)

    @pytest.mark.parametrize("init", [torch.ones(2), torch.ones(1, 2, 3), 1.0])
    def test_a_state_of_another_shape(self, init):
        with pytest.raises(TypeError, match="`init`.*\\(B, n\\)"):
            Chain(lambda z, x: z, init, None, 4)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
    def test_a_state_that_is_no_float(self, dtype):
        with pytest.raises(TypeError, match="init"):
            solve_chain(Chain(lambda z, x: z, torch.ones(1, 2, dtype=dtype), None, 4))

    @pytest.mark.parametrize("broadcasts", [False, True])
    def test_a_step_that_returns_something_else(self, broadcasts):
        for step in (lambda z, x: z[..., :1], lambda z, x: None):
            problem = Chain(step, torch.ones(1, 2), None, 4, broadcasts=broadcasts)
            for solver in ("jacobi", "sequential"):
                with pytest.raises(TypeError, match="`step` must return"):
                    solve_chain(problem, solver=solver)

    def test_a_formula_that_returns_something_else(self):
        problem = dataclasses.replace(
            self.problem(), linearised=lambda z, x: (z, z), broadcasts=True
        )
        with pytest.raises(TypeError, match="`linearised`.*\\(1, 3, 2, 2\\)"):
            solve_chain(problem)

    def test_a_guess_of_another_shape(self):
        with pytest.raises(ValueError, match="`guess`.*\\(9, 3, 2\\).*\\(9, 3\\)"):
            solve_chain(self.problem(), guess=torch.ones(9, 3))

    @pytest.mark.parametrize("name", ["max_steps", "window"])
    def test_counts(self, name):
        with pytest.raises(ValueError, match=f"`{name}`"):
            solve_chain(self.problem(), **{name: 0})

    def test_an_unknown_solver_and_an_unknown_adjoint(self):
        with pytest.raises(parafix.core.UnknownComponentError, match="jacobi"):
            solve_chain(self.problem(), solver="jacoby")
        with pytest.raises(parafix.core.UnknownComponentError, match="implicit"):
            solve_chain(self.problem(), adjoint="implicite")

    def test_an_object_and_a_tolerance(self):
        with pytest.raises(ValueError, match="`rtol`.*solver"):
            solve_chain(self.problem(), solver=SWEEPS["jacobi"], rtol=1e-3)

    def test_solvers_and_adjoints_of_dense_problems(self):
        for solver in (Anderson(1e-3, 1e-3), "anderson", lambda x: x):
            with pytest.raises(TypeError, match="solver|Anderson.*dense"):
                solve_chain(self.problem(), solver=solver)
        for adjoint in (OneStepAdjoint(), "one-step"):
            with pytest.raises(TypeError, match="OneStepAdjoint.*dense"):
                solve_chain(self.problem(), adjoint=adjoint)

    def test_those_of_chains_for_dense_problems(self):
        y0 = torch.ones(1)
        for solver in ("jacobi", "sequential", SWEEPS["newton"]):
            with pytest.raises(TypeError, match="recurrences"):
                fixed_point(torch.cos, y0, solver=solver)
        with pytest.raises(TypeError, match="ChainAdjoint is for chains"):
            fixed_point(torch.cos, y0, adjoint=ChainAdjoint())

    @pytest.mark.parametrize("made", [Jacobi, Newton, Sequential])
    def test_negative_tolerances(self, made):
        with pytest.raises(ValueError, match="`atol`"):
            made(1e-3, -1e-3)

    @pytest.mark.parametrize("value", [[1e-3] * SIZE, np.full(SIZE, 1e-3)])
    def test_tolerances_for_each_entry_are_a_tensor(self, value):
        calls = (
            lambda: Jacobi(value, 1e-3),
            lambda: solve_chain(self.problem(), rtol=value),
            lambda: fixed_point(torch.cos, torch.ones(1, SIZE), rtol=value),
        )
        for call in calls:
            with pytest.raises(TypeError, match="`rtol`.*a tensor"):
                call()
        options = {"solver": "jacobi", "atol": np.float32(1e-6)}
        each = torch.tensor(value)
        many = solve_chain(self.problem(), rtol=each, **options)
        one = solve_chain(self.problem(), rtol=1e-3, **options)
        assert_identical(many.value, one.value)


def test_ten_thousand_steps():
    arguments = requiring(tanh_problem(10_000, 1))

    def both(states):
        return states, torch.autograd.grad(states.sin().sum(), arguments)

    chain = chain_of(*arguments, "formula")
    actual = both(solve_chain(chain, solver=SWEEPS["newton"]).value)
    assert_close(actual, both(states_by_loop(*arguments)), 1e-9)
