import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from parafix.core.jax import default_tolerance, RESULTS

from .._demo_network import Network
from .._demo_results import Comparison, Sweep, Sweeps, Timing
from ._auto import choose
from ._demo_cells import CELLS, initial, prediction_error
from ._scan import scan


# Far more than a solve takes that converges, and few enough to wait for.
_MOST_SWEEPS = 100

_ON_CPU = (
    "That is a CPU. DEER does many times the arithmetic of the loop, to be rid of the "
    "wait for the step before; a CPU can do little of it side by side, so the loop is "
    "usually the faster one, and the more so the larger the state and the batch."
)

Advance = Callable[[str], None]


@contextlib.contextmanager
def computation(
    network: Network,
    inputs: np.ndarray,
    *,
    dtype: str,
    tolerance: float | None,
    window: int | None,
    repeats: int,
) -> Iterator["Computation"]:
    """The demo's computation, in a context in which `dtype` exists."""
    with jax.enable_x64(dtype == "float64"):
        yield Computation(network, inputs, dtype, tolerance, window, repeats)


class Computation:
    """A network over a batch of sequences, one step after the other and by DEER."""

    # What is waited for before the first timed run: compilations and first runs.
    preparations = 4
    sequential = "jax.lax.scan, compiled"
    parallel = 'parafix.deer.jax.scan(solver="deer"), compiled'

    def __init__(self, network, inputs, dtype, tolerance, window, repeats):
        self.network = network
        self.tolerance = default_tolerance(dtype) if tolerance is None else tolerance
        self.window = window
        self.repeats = repeats
        self.most_sweeps = _MOST_SWEEPS
        self.eps = float(jnp.finfo(dtype).eps)
        self.platform = jax.default_backend()
        self.remark = _ON_CPU if self.platform == "cpu" else ""
        self.where = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
        self._weights = {k: jnp.asarray(w, dtype) for k, w in network.weights.items()}
        self._xs = jnp.asarray(inputs, dtype)
        self._init = initial(network.cell, network.hidden, dtype)

    def choices(self) -> list[tuple[str, str, str]]:
        """What `solver="auto"` takes, and why: `(for what, the solver, the reason)`."""
        length = self._xs.shape[1]
        choice = choose(length, self.network.state_size, self.platform)
        return [("solver", choice.solver, choice.reason)]

    def forward(self, advance: Advance) -> Comparison:
        """All outputs, one step after the other and by DEER."""
        return self._compare(self._sequential, self._deer, advance, self._outputs)

    def gradient(self, advance: Advance) -> Comparison:
        """The loss and its gradient in the weights, likewise."""

        def differentiated(run):
            def loss(weights, xs):
                (carry, ys), solution = run(weights, xs)
                columns = weights["offset"].size
                losses = jax.vmap(prediction_error, (None, 0, 0))(
                    weights, ys, xs[:, :, :columns]
                )
                return losses.mean(), solution

            return jax.value_and_grad(loss, has_aux=True)

        return self._compare(
            differentiated(self._sequential),
            differentiated(self._deer),
            advance,
            self._gradients,
        )

    def sweeps(self, count: int, advance: Advance) -> Sweeps:
        """The states after each sweep over the whole length, up to convergence.

        At most `count` sweeps.

        A solve of one sweep that starts at the last iterate does what the next sweep
        of a longer solve does, so all of them are one compiled function.
        """
        truth = self._states(jax.jit(self._carries)(self._weights, self._xs))
        one_sweep = jax.jit(
            jax.vmap(self._solve(None, max_steps=1), in_axes=(None, 0, 0))
        )
        guess = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (*self._xs.shape[:2], *x.shape)), self._init
        )
        allowed = self.tolerance * (1 + np.abs(truth)) + 4 * self.eps
        rows, errors = [], []
        certified, solution = 0, None
        for number in range(count + 1):
            advance(f"sweep {number}")
            if number > 0:
                _, solution = one_sweep(self._weights, self._xs, guess)
                guess = solution.value
                certified = int(solution.stats["converged_prefix"].min())
            error = np.abs(self._states(guess) - truth)
            within = (error <= allowed).all(-1)
            error = error.max(-1)
            rows.append(
                Sweep(
                    certified,
                    _prefix(within),
                    float(within.mean()),
                    float(np.median(error)),
                    float(error.max()),
                )
            )
            errors.append(error[0])
            if solution is not None and not _failure(solution):
                break
        return Sweeps(rows, np.stack(errors), float(np.abs(truth).max()))

    def _cell(self, weights):
        cell = CELLS[self.network.cell]
        return lambda carry, x: cell(weights, carry, x)

    def _solve(self, window, max_steps):
        def solve(weights, xs, guess=None):
            return scan(
                self._cell(weights),
                self._init,
                xs,
                solver="deer",
                guess=guess,
                rtol=self.tolerance,
                atol=self.tolerance,
                max_steps=min(max_steps, xs.shape[0]),
                window=window,
                # The demo prints a failure, and what can be said of it, by itself.
                throw=False,
                return_solution=True,
            )

        return solve

    def _deer(self, weights, xs):
        solve = self._solve(self.window, self.most_sweeps)
        return jax.vmap(solve, in_axes=(None, 0))(weights, xs)

    def _sequential(self, weights, xs):
        run = lambda xs: lax.scan(self._cell(weights), self._init, xs)
        return jax.vmap(run)(xs), None

    def _carries(self, weights, xs):
        cell = self._cell(weights)

        def keep(carry, x):
            carry, _ = cell(carry, x)
            return carry, carry

        return jax.vmap(lambda xs: lax.scan(keep, self._init, xs)[1])(xs)

    def _states(self, carries):
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(carries)]
        return np.concatenate(leaves, -1)

    def _compare(self, sequential, deer, advance, judge):
        """Compiles, runs and times both; `judge` says how far apart the results are."""
        compiled, results, times, runs = [], [], [], ([], [])
        for name, function in (("sequential", sequential), ("DEER", deer)):
            advance(f"compiling {name}")
            start = time.perf_counter()
            compiled.append(jax.jit(function).lower(self._weights, self._xs).compile())
            times.append(time.perf_counter() - start)
            advance(f"first run of {name}")
            results.append(jax.block_until_ready(compiled[-1](self._weights, self._xs)))
        # In turns, so that whatever else the machine does slows both.
        for number in range(self.repeats):
            advance(f"run {number + 1}")
            for function, seconds in zip(compiled, runs, strict=True):
                start = time.perf_counter()
                # Calls return before their results are there.
                jax.block_until_ready(function(self._weights, self._xs))
                seconds.append(time.perf_counter() - start)
        solution, deviation, allowed, outputs = judge(*results)
        steps = np.asarray(solution.stats["num_steps"])
        return Comparison(
            Timing(times[0], runs[0]),
            Timing(times[1], runs[1]),
            (int(steps.min()), int(steps.max())),
            # Of several, NaN is the largest.
            float(np.max(solution.stats["residual"])),
            int(np.min(solution.stats["converged_prefix"])),
            deviation,
            allowed,
            outputs,
            "jax.lax.scan",
            _failure(solution),
        )

    def _outputs(self, sequential, deer):
        (_, expected), _ = sequential
        (_, ys), solution = deer
        scale = float(np.max(np.abs(self._states(solution.value))))
        # What the tolerance leaves open, and what another order of rounding does.
        rounding = float(np.max(solution.stats["error_estimate"]))
        allowed = self.tolerance * (1 + scale) + 10 * (rounding + self.eps) * scale
        expected = np.asarray(expected, np.float64)
        deviation = np.abs(np.asarray(ys, np.float64) - expected).max()
        outputs = (float(expected.min()), float(expected.max()))
        return solution, float(deviation), allowed, outputs

    def _gradients(self, sequential, deer):
        (loss, _), expected = sequential
        (value, solution), gradient = deer
        # The state enters with its sensitivity, and every entry is a sum over all
        # times, in which rounding adds up.
        allowed = 10 * self.tolerance + self.eps**0.5
        largest = max(_largest(g) for g in expected.values())
        deviations = [_relative(value, loss, 0.0)]
        for name, g in expected.items():
            deviations.append(_relative(gradient[name], g, self.eps * largest))
        entries = [float(e) for g in expected.values() for e in (g.min(), g.max())]
        # Of several, NaN is the largest.
        deviation = float(np.max(deviations))
        return solution, deviation, allowed, (min(entries), max(entries))


def _prefix(within):
    """How many times from the start are right, in the sequence with the fewest."""
    first = np.where(within.all(1), within.shape[1], np.argmin(within, 1))
    return int(first.min())


def _largest(x: Float[Array, "..."]) -> float:
    return float(jnp.abs(x).max())


def _relative(x, expected, floor):
    """Largest deviation beside the largest entry; NaN and infinity stay."""
    deviation = _largest(x - expected)
    scale = max(_largest(expected), floor)
    return deviation if scale == 0 else deviation / scale


def _failure(solution: Any) -> str:
    """The sentence of the first sequence that failed, or nothing."""
    failed = np.asarray(solution.result != RESULTS.successful)
    if not failed.any():
        return ""
    one = int(np.argmax(failed))
    message = jax.tree.map(lambda x: x[one], solution).message()
    return f"sequence {one} (counted from 0): {message}"
