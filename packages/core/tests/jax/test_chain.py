import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.sparse
import scipy.sparse.linalg

import parafix.core
from parafix.core.jax import (
    AbstractSweep,
    Chain,
    ChainAdjoint,
    Jacobi,
    jacobian,
    Leaf,
    RESULTS,
    Sequential,
    solve_chain,
)
from parafix.core.testing.jax import assert_close, assert_identical, dense_affine_scan


LENGTH, SIZE = 9, 2


class Newton(AbstractSweep):
    """A sweep from outside the library, with the whole Jacobian."""

    rtol: float
    atol: float
    scan: str = "associative"
    chunk: int | None = None

    def transition(self, step, z, x):
        return jacobian(step, z, x)

    def num_linear(self, size):
        return size


class Picard(AbstractSweep):
    """A diagonal transition: the identity."""

    rtol: float
    atol: float
    scan: str = "auto"
    chunk: int | None = None

    def transition(self, step, z, x):
        return step(z, x), jnp.ones_like(z)

    def num_linear(self, size):
        return 0


SWEEPS = {
    "jacobi": Jacobi(1e-13, 1e-13),
    "chunked jacobi": Jacobi(1e-13, 1e-13, chunk=4),
    "newton": Newton(1e-13, 1e-13),
    "chunked newton": Newton(1e-13, 1e-13, chunk=2),
    "picard": Picard(1e-13, 1e-13),
}


def tanh_step(weights, z, x):
    return jnp.tanh(weights @ z + x)


def tanh_problem(length=LENGTH, **options):
    random = np.random.default_rng(0)
    weights = jnp.asarray(random.normal(size=(SIZE, SIZE)))
    init = jnp.asarray(random.normal(size=SIZE))
    xs = jnp.asarray(random.normal(size=(length, SIZE)))
    return weights, init, xs


def chain_of(weights, init, xs, **options):
    step = lambda z, x: tanh_step(weights, z, x)
    return Chain(step, init, xs, xs.shape[0], **options)


def numpy_states(weights, init, xs):
    z, states = np.asarray(init), []
    for x in np.asarray(xs):
        z = np.tanh(np.asarray(weights) @ z + x)
        states.append(z)
    return np.array(states)


class TestValues:
    @pytest.mark.parametrize("name", SWEEPS)
    def test_agree_with_a_loop(self, name):
        arguments = tanh_problem()
        solution = solve_chain(chain_of(*arguments), solver=SWEEPS[name])
        assert solution.result == RESULTS.successful
        assert_close(solution.value, jnp.asarray(numpy_states(*arguments)))
        assert solution.stats["converged_prefix"] == LENGTH
        assert solution.stats["residual"] <= 1
        assert solution.stats["num_steps"] <= LENGTH

    @pytest.mark.parametrize("length", [0, 1, 2])
    def test_of_short_chains(self, length):
        arguments = tanh_problem(length)
        for solver in ("jacobi", "sequential", SWEEPS["newton"]):
            solution = solve_chain(chain_of(*arguments), solver=solver)
            expected = numpy_states(*arguments).reshape(length, SIZE)
            assert_close(solution.value, jnp.asarray(expected))
            assert solution.result == RESULTS.successful

    def test_of_a_state_without_entries(self):
        problem = Chain(lambda z, x: z, jnp.zeros(0), None, 4)
        solution = solve_chain(problem)
        assert solution.value.shape == (4, 0)
        assert solution.result == RESULTS.successful

    def test_a_sequential_solve_is_the_loop(self):
        arguments = tanh_problem()
        solution = solve_chain(chain_of(*arguments), solver=Sequential(1e-9, 1e-9))
        assert_close(solution.value, jnp.asarray(numpy_states(*arguments)), 1e-15)
        assert solution.stats["residual"] < 1e-5

    def test_a_linear_chain_is_one_update_for_newton(self):
        random = np.random.default_rng(1)
        a = jnp.asarray(random.normal(size=(20, 2, 2))) / 2
        b = jnp.asarray(random.normal(size=(20, 2)))
        problem = Chain(lambda z, x: x[0] @ z + x[1], jnp.ones(2), (a, b), 20)
        solution = solve_chain(problem, solver=SWEEPS["newton"])
        assert_close(solution.value, dense_affine_scan(a, b, jnp.ones(2)))
        assert solution.stats["num_steps"] <= 2
        # Two tangents in every sweep, in the certificate, and for the growth of errors.
        assert solution.stats["num_linear"] == (solution.stats["num_steps"] + 2) * 2

    @pytest.mark.parametrize("name", ["jacobi", "newton", "sequential"])
    def test_what_was_done_is_counted(self, name):
        counts = {"evals": 0, "tangents": 0}

        def note(kind, x):
            def count(_):
                counts[kind] += 1

            jax.debug.callback(count, x)

        @jax.custom_jvp
        def counted(z):
            note("evals", z[0])
            return z

        @counted.defjvp
        def _(primals, tangents):
            note("tangents", tangents[0][0])
            return counted(*primals), tangents[0]

        weights, init, xs = tanh_problem()
        step = lambda z, x: jnp.tanh(weights @ counted(z) + x)
        solver = SWEEPS.get(name, name)
        stats = solve_chain(Chain(step, init, xs, LENGTH), solver=solver).stats
        jax.effects_barrier()
        # A single step says which entry messages are about; the loop takes others.
        single = 1 + LENGTH * (name == "sequential")
        assert stats["num_evals"] * LENGTH + single == counts["evals"]
        # One product is one call, whatever the length.
        assert stats["num_linear"] == counts["tangents"] > 0

    def test_jacobi_needs_as_many_sweeps_as_the_chain_remembers(self):
        # Only three of the inputs matter for a state, whatever the length.
        def step(z, x):
            return jnp.stack([x, z[0], z[1]])

        xs = jnp.sin(jnp.arange(50.0))
        solution = solve_chain(Chain(step, jnp.zeros(3), xs, 50))
        assert solution.stats["num_steps"] == 4
        assert_identical(solution.value[2:, 2], xs[:-2])

    def test_an_integer_as_input(self):
        problem = Chain(
            lambda z, n: 0.5 * z + n.astype(float), jnp.ones(1), jnp.arange(3), 3
        )
        assert_close(solve_chain(problem).value, jnp.array([[0.5], [1.25], [2.625]]))


class TestWindows:
    @pytest.mark.parametrize("window", [1, 4, 9, 20])
    def test_change_only_rounding(self, window):
        arguments = tanh_problem()
        solution = solve_chain(
            chain_of(*arguments), solver=SWEEPS["newton"], window=window
        )
        assert_close(solution.value, jnp.asarray(numpy_states(*arguments)))
        assert solution.stats["converged_prefix"] == LENGTH
        assert solution.stats["num_steps"] >= -(-LENGTH // window)

    def test_the_first_that_failed_speaks(self):
        def step(z, t):
            return jnp.where(t == 5, jnp.nan, 0.5 * z + t)

        xs = jnp.arange(12.0)
        for offset, stride, position in ((0, 1, 5), (11, -1, 6), (100, 10, 150)):
            problem = Chain(step, jnp.ones(1), xs, 12, offset=offset, stride=stride)
            solution = solve_chain(problem, window=4, throw=False)
            assert solution.result == RESULTS.nonfinite
            assert solution.stats["converged_prefix"] == 5
            assert solution.message().endswith(f"First bad position: {position}.")
            assert np.isfinite(solution.value[:5]).all()
            assert np.isnan(solution.value[5:]).all()

    @pytest.mark.parametrize("window", [1, 10])
    def test_do_not_make_a_sum_look_unstable(self, window):
        # Rounding errors of one sign in all windows would add up to a false alarm.
        xs = jnp.ones((3000, 1), jnp.float32)
        problem = Chain(lambda z, x: z + x, jnp.zeros(1, jnp.float32), xs, 3000)
        options = {"solver": Newton(1e-5, 1e-5), "throw": False}
        whole = solve_chain(problem, **options).stats["error_estimate"]
        parts = solve_chain(problem, window=window, **options).stats["error_estimate"]
        assert whole / 4 < parts < 4 * whole


def implicit_gradient(weights, init, xs, cotangent):
    """The gradient by sparse linear algebra, from the states of the loop."""
    weights = np.asarray(weights)
    z = numpy_states(weights, init, xs)
    length = len(z)
    previous = np.concatenate([np.asarray(init)[None], z[:-1]])
    slopes = 1 - z**2
    blocks = slopes[:, :, None] * weights
    lower = scipy.sparse.block_diag(blocks[1:]) if length > 1 else None
    matrix = scipy.sparse.eye(length * SIZE, format="lil")
    if lower is not None:
        matrix[SIZE:, :-SIZE] -= lower
    adjoint = scipy.sparse.linalg.spsolve(
        matrix.T.tocsc(), np.asarray(cotangent).ravel()
    ).reshape(length, SIZE)
    g_xs = slopes * adjoint
    g_weights = np.einsum("ti,tj->ij", g_xs, previous)
    return g_weights, blocks[0].T @ adjoint[0], g_xs


class TestAdjoint:
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
    def test_agrees_with_sparse_linear_algebra(self, adjoint, window):
        arguments = tanh_problem()
        z = numpy_states(*arguments)

        @jax.jit
        def gradient(*arguments):
            def loss(*arguments):
                solution = solve_chain(
                    chain_of(*arguments),
                    solver=SWEEPS["jacobi"],
                    adjoint=adjoint,
                    window=window,
                )
                return jnp.sum(jnp.sin(solution.value))

            return jax.grad(loss, (0, 1, 2))(*arguments)

        expected = implicit_gradient(*arguments, np.cos(z))
        assert_close(gradient(*arguments), tuple(map(jnp.asarray, expected)))

    def test_agrees_with_the_loop_to_second_order(self):
        arguments = tanh_problem(4)

        def states_by_loop(weights, init, xs):
            states = []
            for x in xs:
                init = tanh_step(weights, init, x)
                states.append(init)
            return jnp.stack(states)

        def states_by_sweeps(*arguments):
            return solve_chain(chain_of(*arguments), solver=SWEEPS["newton"]).value

        def derivatives(states):
            loss = lambda arguments: jnp.sum(jnp.sin(states(*arguments)))
            of_init = lambda init: loss((arguments[0], init, arguments[2]))

            @jax.jit
            def everything(arguments):
                return (
                    jax.jvp(loss, (arguments,), (jax.tree.map(jnp.cos, arguments),)),
                    jax.hessian(loss)(arguments),
                    jax.jacrev(jax.grad(of_init))(arguments[1]),
                )

            return everything(arguments)

        assert_close(derivatives(states_by_sweeps), derivatives(states_by_loop))

    def test_guess_and_statistics_have_no_gradient(self):
        arguments = tanh_problem()

        def loss(arguments, guess):
            solution = solve_chain(chain_of(*arguments), guess=guess)
            stats = solution.stats
            return stats["residual"] + stats["error_estimate"], solution.value.sum()

        guess = jnp.ones((LENGTH, SIZE))
        of_stats = jax.grad(lambda *x: loss(*x)[0], (0, 1))(arguments, guess)
        assert not any(np.any(x) for x in jax.tree.leaves(of_stats))
        of_guess = jax.grad(lambda *x: loss(*x)[1], 1)(arguments, guess)
        assert not np.any(of_guess)

    def test_of_what_the_step_closes_over(self):
        # Nested pytrees, constants beside, and a leaf that is no array.
        def loss(theta):
            step = lambda z, x: jnp.tanh(theta["a"][0] * z + theta["b"] * jnp.ones(2))
            problem = Chain(step, theta["init"], None, 5)
            return solve_chain(problem).value.sum()

        theta = {"a": [jnp.array(0.5)], "b": jnp.array(0.3), "init": jnp.zeros(2)}

        def by_loop(theta):
            z, total = theta["init"], 0.0
            for _ in range(5):
                z = jnp.tanh(theta["a"][0] * z + theta["b"] * jnp.ones(2))
                total = total + z.sum()
            return total

        assert_close(jax.grad(loss)(theta), jax.grad(by_loop)(theta))


class TestBatches:
    def test_every_sample_stops_by_itself(self):
        # How far an entry is copied is how many sweeps a sample needs.
        def solve(memory):
            step = lambda z, x: jnp.where(memory > jnp.arange(4), jnp.roll(z, 1), x)
            xs = jnp.tile(jnp.arange(1.0, 11.0)[:, None], 4)
            return solve_chain(Chain(step, jnp.zeros(4), xs, 10))

        memories = jnp.array([0, 1, 3])
        batch = jax.vmap(solve)(memories)
        steps = [int(solve(m).stats["num_steps"]) for m in memories]
        assert batch.stats["num_steps"].tolist() == steps
        assert steps[0] < steps[2]

    def test_a_nan_in_one_sample_changes_no_bit_of_the_others(self):
        weights, init, xs = tanh_problem()

        @jax.jit
        @jax.vmap
        def solve(init):
            def loss(weights, init):
                problem = chain_of(weights, init, xs)
                solution = solve_chain(problem, solver=SWEEPS["newton"], throw=False)
                return solution.value.sum(), solution

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, init)

        inits = jnp.stack([init, 2 * init, -init])
        spoilt = inits.at[1].set(jnp.nan)
        others = lambda tree: jax.tree.map(lambda x: jnp.delete(x, 1, axis=0), tree)
        assert_identical(others(solve(spoilt)), others(solve(inits)))
        assert solve(spoilt)[0][1].result._value.tolist()[1] == 2


class TestFailures:
    def test_leaves_are_named_in_the_order_of_the_state(self):
        leaves = tuple(
            Leaf(name, size, 2e-16)
            for name, size in (("position", 2), ("speed", 1), ("age", 2))
        )
        for entry, name in ((0, "position"), (2, "speed"), (3, "age"), (4, "age")):
            bad = jnp.arange(5) == entry

            def step(z, t, bad=bad):
                return jnp.where(bad & (t == 3), jnp.nan, 0.5 * z)

            problem = Chain(step, jnp.ones(5), jnp.arange(6), 6, leaves=leaves)
            solution = solve_chain(problem, throw=False)
            assert solution.message().endswith(f"position: 3, leaf {name}.")

    def test_are_raised_with_their_place(self):
        step = lambda z, t: jnp.where(t == 3, jnp.inf, 0.5 * z)
        problem = Chain(step, jnp.ones(1), jnp.arange(6), 6)
        with pytest.raises(eqx.EquinoxRuntimeError, match="First bad position: 3"):
            solve_chain(problem)

    def test_the_last_iterate_is_returned(self):
        arguments = tanh_problem()
        expected = numpy_states(*arguments)
        for sweeps in (1, 5):
            solution = solve_chain(chain_of(*arguments), max_steps=sweeps, throw=False)
            assert solution.result == RESULTS.max_steps_reached
            assert_close(solution.value[:sweeps], jnp.asarray(expected[:sweeps]), 1e-15)
            assert sweeps <= solution.stats["converged_prefix"] < LENGTH

    def test_an_unstable_chain_is_no_success(self):
        step = lambda z, x: 3.9 * z * (1 - z)
        for solver in ("jacobi", SWEEPS["newton"]):
            problem = Chain(step, jnp.full(1, 0.3), None, 150)
            solution = solve_chain(problem, solver=solver, throw=False)
            assert solution.result == RESULTS.ill_conditioned


class TestArguments:
    def problem(self):
        return chain_of(*tanh_problem())

    def test_inputs_of_another_length(self):
        with pytest.raises(ValueError, match="`xs`.*`length` = 4.*\\(5, 2\\)"):
            Chain(lambda z, x: z, jnp.ones(2), jnp.ones((5, 2)), 4)

    def test_a_state_of_integers(self):
        with pytest.raises(TypeError, match="init"):
            solve_chain(Chain(lambda z, x: z, jnp.ones(2, int), None, 4))

    def test_a_guess_of_another_shape(self):
        with pytest.raises(ValueError, match="`guess`.*\\(9, 2\\).*\\(9, 3\\)"):
            solve_chain(self.problem(), guess=jnp.ones((9, 3)))

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

    def test_a_solver_of_dense_problems(self):
        with pytest.raises(TypeError, match="FixedPointIteration|solver"):
            solve_chain(self.problem(), solver=optx.FixedPointIteration(1e-3, 1e-3))
