"""What is saved, where sweeps start, how they fail, and what is refused."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optimistix as optx
import pytest

from parafix.core.jax import Blocks, RESULTS
from parafix.core.testing.jax import assert_close, assert_identical
from parafix.deer.jax import DEER, diffeqsolve


def field(t, y, args):
    return args * jnp.sin(y) * jnp.cos(t)


SLOW = pytest.mark.slow
TERM = diffrax.ODETerm(field)
Y0, ARGS = jnp.array([0.4, -1.3]), jnp.array(0.9)


def solve(solver=None, y0=Y0, args=ARGS, *, by=diffeqsolve, **options):
    solver = diffrax.Heun() if solver is None else solver
    return by(TERM, solver, 0.0, 4.0, 0.1, y0, args, **options)


class TestSaving:
    @pytest.mark.parametrize("max_steps", [pytest.param(40, marks=SLOW), 47])
    def test_buffers_are_those_of_diffrax(self, max_steps):
        subs = [
            diffrax.SubSaveAt(steps=True, t0=True),
            diffrax.SubSaveAt(steps=7, t1=True, fn=lambda t, y, args: t * y[0]),
            diffrax.SubSaveAt(steps=4, ts=jnp.linspace(0.05, 4.0, 50)),
            (diffrax.SubSaveAt(t0=True), {"a": diffrax.SubSaveAt(t1=True)}),
        ]
        saveat = diffrax.SaveAt(
            subs=subs, dense=True, solver_state=True, controller_state=True
        )
        options = {"saveat": saveat, "max_steps": max_steps}
        ours = solve(diffrax.Tsit5(), **options)
        theirs = solve(diffrax.Tsit5(), by=diffrax.diffeqsolve, **options)
        fields = ("t0", "t1", "ts", "ys", "solver_state", "controller_state")
        for name in fields:
            actual, expected = getattr(ours, name), getattr(theirs, name)
            assert_close(actual, expected, 1e-12)
        assert_close(
            eqx.filter(ours.interpolation, eqx.is_array),
            eqx.filter(theirs.interpolation, eqx.is_array),
            1e-12,
        )
        t = jnp.array([0.0, 0.33, 4.0])
        actual, expected = (jax.vmap(sol.evaluate)(t) for sol in (ours, theirs))
        assert_close(actual, expected, 1e-12)
        assert ours.stats["max_steps"] == max_steps

    def test_without_max_steps_nothing_is_padded(self):
        solution = solve(saveat=diffrax.SaveAt(t0=True, steps=True, dense=True))
        assert solution.ts.shape == (41,)
        assert solution.interpolation.ts.shape == (41,)
        assert solution.stats["max_steps"] is None
        assert bool(jnp.isfinite(solution.ys).all())

    @SLOW
    def test_a_state_without_entries(self):
        none = diffrax.ODETerm(lambda t, y, args: -y)
        save = diffrax.SaveAt(steps=True)
        arguments = (none, diffrax.Heun(), 0.0, 1.0, 0.05, jnp.zeros((2, 0)))
        assert diffeqsolve(*arguments, saveat=save).ys.shape == (20, 2, 0)

    def test_nothing_happens_between_equal_times(self):
        ts = jnp.array([1.0, 1.0])
        saveat = diffrax.SaveAt(
            subs=(diffrax.SubSaveAt(t0=True, ts=ts), diffrax.SubSaveAt(t1=True)),
            dense=True,
        )
        arguments = (TERM, diffrax.Heun(), 1.0, 1.0, 0.1, Y0, ARGS)
        ours = diffeqsolve(*arguments, saveat=saveat)
        theirs = diffrax.diffeqsolve(*arguments, saveat=saveat)
        assert_identical((ours.ts, ours.ys), (theirs.ts, theirs.ys))
        assert_identical(ours.evaluate(1.0), Y0)

    @SLOW
    def test_a_solve_goes_on_from_the_state_of_another(self):
        solver = diffrax.LeapfrogMidpoint()
        saveat = diffrax.SaveAt(t1=True, solver_state=True)
        half = diffeqsolve(TERM, solver, 0.0, 2.0, 0.1, Y0, ARGS, saveat=saveat)
        rest = diffeqsolve(
            *(TERM, solver, 2.0, 4.0, 0.1, half.ys[-1], ARGS),
            solver_state=half.solver_state,
            made_jump=False,
        )
        assert_close(rest.ys, solve(solver).ys, 1e-12)


class TestGuess:
    @SLOW
    def test_sweeps(self):
        def number(guess):
            solution = solve(diffrax.Tsit5(), guess=guess)
            return int(solution.stats["num_sweeps"])

        coarse, constant, step = map(number, ("coarse", "constant", "step"))
        assert coarse < constant
        assert step <= constant + 1

    @pytest.mark.parametrize(
        "saveat",
        [
            diffrax.SaveAt(t0=True, steps=True),
            pytest.param(diffrax.SaveAt(steps=True), marks=SLOW),
            pytest.param(diffrax.SaveAt(dense=True), marks=SLOW),
        ],
    )
    def test_an_earlier_solution(self, saveat):
        earlier = solve(diffrax.Euler(), saveat=saveat)
        again = solve(diffrax.Euler(), guess=earlier)
        assert int(again.stats["num_sweeps"]) <= 2
        assert int(earlier.stats["num_sweeps"]) > 2
        end = earlier.evaluate(4.0) if saveat.dense else earlier.ys[-1]
        assert_close(again.ys[-1], end, 1e-12)

    @SLOW
    def test_states_at_all_times(self):
        states = solve(saveat=diffrax.SaveAt(steps=True)).ys
        assert int(solve(guess=states).stats["num_sweeps"]) <= 2
        solver = diffrax.ReversibleHeun()
        states = solve(solver, saveat=diffrax.SaveAt(steps=True)).ys
        assert int(solve(solver, guess=states).stats["num_sweeps"]) <= 3

    @SLOW
    def test_long_steps_that_blow_up_are_not_used(self):
        # Stable with dt = 0.1, unstable with ten times as much.
        stiff = diffrax.ODETerm(lambda t, y, args: -args * (y - jnp.cos(t)))
        arguments = (stiff, diffrax.Euler(), 0.0, 20.0, 0.1, Y0, jnp.array(15.0))
        coarse = diffeqsolve(*arguments)
        constant = diffeqsolve(*arguments, guess="constant")
        assert bool(coarse.result == diffrax.RESULTS.successful)
        assert_close(coarse.ys, diffrax.diffeqsolve(*arguments).ys, 1e-12)
        assert int(coarse.stats["num_sweeps"]) == int(constant.stats["num_sweeps"])


def lorenz(t, y, args):
    a, b, c = y
    return jnp.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c])


CHAOS = (diffrax.ODETerm(lorenz), diffrax.Tsit5(), 0.0, 40.0, 0.05, jnp.ones(3))
SQUARE = diffrax.ODETerm(lambda t, y, args: y**2)


class TestFailure:
    def test_too_few_sweeps(self):
        solution = diffeqsolve(*CHAOS, max_sweeps=3, throw=False)
        assert bool(solution.result == diffrax.RESULTS.nonlinear_max_steps_reached)
        assert bool(solution.stats["result"] == RESULTS.max_steps_reached)
        assert int(solution.stats["converged_prefix"]) < 800

    @SLOW
    def test_results_are_translated(self):
        arguments = (SQUARE, diffrax.Euler(), 0.0, 4.0, 0.1, jnp.array(3.0))
        solution = diffeqsolve(*arguments, throw=False)
        assert bool(solution.result == diffrax.RESULTS.nonfinite)
        assert bool(solution.stats["result"] == RESULTS.nonfinite)
        assert int(solution.stats["converged_prefix"]) == 13
        with pytest.raises(eqx.EquinoxRuntimeError, match="used up `max_steps`"):
            diffeqsolve(*CHAOS, max_sweeps=3)

    @SLOW
    def test_chaos_is_no_success(self):
        solution = diffeqsolve(*CHAOS, throw=False)
        assert bool(solution.result != diffrax.RESULTS.successful)
        assert bool(solution.stats["result"] == RESULTS.ill_conditioned)
        assert float(solution.stats["error_estimate"]) > 1e-8

    @SLOW
    def test_the_fallback_is_the_loop(self):
        ours = diffeqsolve(*CHAOS, max_sweeps=3, fallback="sequential")
        theirs = diffeqsolve(*CHAOS, root_finder="sequential")
        assert bool(ours.result == diffrax.RESULTS.successful)
        assert_identical(ours.ys, theirs.ys)

    def test_a_solution_that_is_not_finite(self):
        arguments = (SQUARE, diffrax.Euler(), 0.0, 4.0, 0.1, jnp.array(3.0))
        with pytest.raises(eqx.EquinoxRuntimeError, match="First bad position: 13"):
            diffeqsolve(*arguments)
        # The loop says what Diffrax says, and beside it what there is.
        loop = diffeqsolve(*arguments, root_finder="sequential")
        assert bool(loop.result == diffrax.RESULTS.successful)
        assert bool(loop.stats["result"] == RESULTS.nonfinite)

    @pytest.mark.parametrize(
        "root_finder", [pytest.param("deer", marks=SLOW), "sequential"]
    )
    def test_an_implicit_step_that_is_not_solved(self, root_finder):
        solver = diffrax.ImplicitEuler(
            root_finder=optx.Newton(rtol=1e-13, atol=1e-13), root_find_max_steps=2
        )
        options = {"root_finder": root_finder}
        solution = solve(solver, throw=False, **options)
        theirs = solve(solver, throw=False, by=diffrax.diffeqsolve)
        assert bool(solution.result == theirs.result)
        assert bool(solution.result != diffrax.RESULTS.successful)
        with pytest.raises(eqx.EquinoxRuntimeError):
            solve(solver, **options)


class TestRefused:
    def test_adaptive_steps(self):
        controller = diffrax.PIDController(rtol=1e-3, atol=1e-6)
        for refused in (controller, diffrax.ClipStepSizeController(controller)):
            with pytest.raises(ValueError, match="StepTo"):
                solve(stepsize_controller=refused)

    def test_what_follows_steps(self):
        event = diffrax.Event(lambda t, y, args, **kwargs: y[0])
        with pytest.raises(ValueError, match="`event` ends a solve"):
            solve(event=event)
        with pytest.raises(ValueError, match="`progress_meter` follows"):
            solve(progress_meter=diffrax.TextProgressMeter())

    def test_other_adjoints(self):
        for adjoint in (diffrax.BacksolveAdjoint(), diffrax.ImplicitAdjoint()):
            with pytest.raises(ValueError, match="other derivatives"):
                solve(adjoint=adjoint)

    def test_grids(self):
        arguments = (TERM, diffrax.Heun())
        with pytest.raises(ValueError, match="`dt0` must be negative"):
            diffeqsolve(*arguments, 1.0, 0.0, 0.1, Y0, ARGS)
        with pytest.raises(ValueError, match="`dt0` must be positive"):
            diffeqsolve(*arguments, 0.0, 1.0, -0.1, Y0, ARGS)
        with pytest.raises(ValueError, match="must not be zero"):
            diffeqsolve(*arguments, 0.0, 1.0, 0.0, Y0, ARGS)
        with pytest.raises(ValueError, match="`dt0` must be given"):
            diffeqsolve(*arguments, 0.0, 1.0, None, Y0, ARGS)
        with pytest.raises(ValueError, match="`t1` must be finite"):
            diffeqsolve(*arguments, 0.0, jnp.inf, 0.1, Y0, ARGS)
        with pytest.raises(ValueError, match="more than max_steps=39"):
            solve(max_steps=39)

    def test_times_that_do_not_increase(self):
        # Values, so that they are found at run time, by Diffrax.
        with pytest.raises(eqx.EquinoxRuntimeError, match="strictly increasing"):
            diffeqsolve(
                *(TERM, diffrax.Euler(), 0.0, 4.0, None, Y0, ARGS),
                stepsize_controller=diffrax.StepTo(jnp.array([0.0, 2.0, 1.0, 4.0])),
                root_finder="sequential",
            )
        for ts, message in (
            ([0.2, 0.1], "increasing or decreasing"),
            ([0.2, 4.1], "between t0 and t1"),
        ):
            saveat = diffrax.SaveAt(ts=jnp.array(ts))
            with pytest.raises(eqx.EquinoxRuntimeError, match=message):
                solve(diffrax.Euler(), saveat=saveat, root_finder="sequential")

    def test_a_traced_number_of_steps(self):
        def run(t1):
            return diffeqsolve(TERM, diffrax.Heun(), 0.0, t1, 0.1, Y0, ARGS).ys

        with pytest.raises(ValueError, match="`t1` is traced"):
            jax.jit(run)(4.0)
        with pytest.raises(ValueError, match="`t1` is traced"):
            jax.vmap(run)(jnp.array([3.0, 4.0]))

    def test_an_implicit_solver_without_tolerances(self):
        with pytest.raises(ValueError, match="tolerances for the implicit solver"):
            solve(diffrax.Kvaerno3())

    def test_terms_that_do_not_fit(self):
        with pytest.raises(ValueError, match="not compatible"):
            solve(diffrax.EulerHeun())

    def test_guesses(self):
        with pytest.raises(ValueError, match="at all 40 times"):
            solve(guess=jnp.zeros((39, 2)))
        with pytest.raises(ValueError, match="structure of `y0`"):
            solve(guess=(jnp.zeros((40, 2)),))
        with pytest.raises(ValueError, match='"coarse", "constant"'):
            solve(guess="rough")
        with pytest.raises(ValueError, match="must have been made with"):
            solve(guess=solve())

    def test_arguments_of_the_solve(self):
        with pytest.raises(LookupError, match="no-such"):
            solve(root_finder="no-such")
        with pytest.raises(ValueError, match="non-negative"):
            solve(rtol=-1.0)
        with pytest.raises(ValueError, match="`max_sweeps` must be at least 1"):
            solve(max_sweeps=0)
        with pytest.raises(ValueError, match="has its own"):
            solve(root_finder=DEER(rtol=1e-3, atol=1e-3), rtol=1e-3)
        with pytest.raises(ValueError, match="divide|blocks"):
            solve(structure=Blocks(3))

    def test_wrong_types(self):
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            with pytest.raises(TypeError, match="`solver` must be a solver"):
                solve("tsit5")
            with pytest.raises(TypeError, match="`saveat` must be"):
                solve(saveat=np.ones(3))
            with pytest.raises(TypeError, match="`stepsize_controller` must be"):
                solve(stepsize_controller=0.1)
            with pytest.raises(TypeError, match="`adjoint` must be"):
                solve(adjoint="backsolve")
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)
