"""A GRU over random inputs: the problem of the tables, and who solves it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from parafix.core.jax import default_tolerance
from parafix.deer.jax import choose, scan

from .harness import Answer, Contestant, Facts
from .jax_programs import in_float64, jax_program, named_arrays
from .textbook import apart, Linearise, textbook_deer, textbook_sweeps, together
from .verdicts import codes_of, worst_result


INPUTS = 2
TOLERANCE = default_tolerance(jnp.float32)


class Weights(NamedTuple):
    """Of the three gates, one below the other: reset, update, candidate."""

    inputs: Any
    states: Any
    input_bias: Any
    state_bias: Any


def gru(weights: Weights, state: jax.Array, x: jax.Array) -> jax.Array:
    """One step of a gated recurrent unit, with the gates of `torch.nn.GRU`."""
    from_input = weights.inputs @ x + weights.input_bias
    from_state = weights.states @ state + weights.state_bias
    reset_i, update_i, candidate_i = jnp.split(from_input, 3)
    reset_s, update_s, candidate_s = jnp.split(from_state, 3)
    reset = jax.nn.sigmoid(reset_i + reset_s)
    update = jax.nn.sigmoid(update_i + update_s)
    candidate = jnp.tanh(candidate_i + reset * candidate_s)
    return (1 - update) * candidate + update * state


@dataclasses.dataclass(frozen=True)
class Problem:
    """`batch` sequences of `length` standard normal inputs; `None`: one, not batched.

    Everything is drawn from one seed by NumPy, so that every framework gets the same
    numbers: weights uniform in `±1/sqrt(size)`, zero initial states, float32.
    """

    batch: int | None
    length: int
    size: int
    seed: int = 0
    inputs: int = INPUTS

    @functools.cached_property
    def arguments(self) -> tuple[Weights, np.ndarray, np.ndarray]:
        """`(weights, init, xs)`."""
        draw = np.random.default_rng(self.seed)
        bound = self.size**-0.5
        shapes = Weights(
            (3 * self.size, self.inputs),
            (3 * self.size, self.size),
            (3 * self.size,),
            (3 * self.size,),
        )
        weights = Weights(
            *(draw.uniform(-bound, bound, shape).astype(np.float32) for shape in shapes)
        )
        batch = () if self.batch is None else (self.batch,)
        xs = draw.standard_normal((*batch, self.length, self.inputs))
        xs = xs.astype(np.float32)
        return weights, np.zeros((*batch, self.size), np.float32), xs

    def batched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(weights, init, xs)` of one sample, made one of all samples."""
        if self.batch is None:
            return function
        return jax.vmap(function, in_axes=(None, 0, 0))

    def forward(self, solver: "Solver") -> Callable[..., jax.Array]:
        """All states: `(B, T, n)`."""
        return self.batched(solver.states)

    def gradient(self, solver: "Solver") -> Callable[..., Any]:
        """The mean square of all states, and its gradient in the weights and `init`."""

        def loss(weights, init, xs):
            return jnp.mean(self.forward(solver)(weights, init, xs) ** 2)

        return jax.value_and_grad(loss, argnums=(0, 1))

    @functools.cached_property
    def forward_reference(self) -> Answer:
        return named_arrays(in_float64(self.forward(SEQUENTIAL), *self.arguments))

    @functools.cached_property
    def gradient_reference(self) -> Answer:
        return named_arrays(in_float64(self.gradient(SEQUENTIAL), *self.arguments))

    def residual(self, states: jax.typing.ArrayLike) -> float:
        """`max |f(z) - z| / (atol + rtol |z|)` in float64, at the default tolerances.

        Measured here, in the same way for everybody, and not what a solver says of
        itself.
        """

        def of_sample(weights, init, xs, states):
            lag = jnp.concatenate([init[None], states[:-1]])
            values = jax.vmap(functools.partial(gru, weights))(lag, xs)
            tolerance = TOLERANCE * (1 + jnp.abs(states))
            return jnp.max(jnp.abs(values - states) / tolerance)

        if self.batch is not None:
            of_sample = jax.vmap(of_sample, in_axes=(None, 0, 0, 0))
        found = in_float64(of_sample, *self.arguments, np.asarray(states))
        return float(np.max(found))

    @functools.cache  # noqa: B019 (a problem lives as long as its case)
    def facts(self, solver: "Solver") -> Facts:
        """Sweeps, residual and result code, from a run that is not timed."""
        function = jax.jit(self.batched(solver.informed))
        states, sweeps, codes = function(*self.arguments)
        facts: dict[str, float | int | str] = {"residual": self.residual(states)}
        if sweeps is not None:
            facts["sweeps"] = int(np.max(sweeps))
        if codes is not None:
            facts["result"] = worst_result(codes)
        return facts


class Solver(NamedTuple):
    """Somebody who computes the states of one sample.

    - `states`: `(weights, init, xs) -> (T, n)`, as a user writes it; this is timed.
    - `informed`: the same with what the solver knows, `(states, sweeps, code)`, where
        the last two may be `None`. Must not raise for a solve that failed.
    """

    name: str
    states: Callable[..., Any]
    informed: Callable[..., Any]


def contestants(
    problem: Problem, group: str, solvers: Sequence["Solver"]
) -> list[Contestant]:
    """The solvers on a problem, `"forward"` or `"value and gradient"`."""
    make = {FORWARD: problem.forward, GRADIENT: problem.gradient}[group]
    return [
        Contestant(
            solver.name,
            functools.partial(
                jax_program,
                make(solver),
                *map(jax.device_put, problem.arguments),
                facts=functools.partial(problem.facts, solver),
            ),
        )
        for solver in solvers
    ]


FORWARD = "forward"
GRADIENT = "value and gradient"


def _sequential(weights, init, xs):
    def body(state, x):
        state = gru(weights, state, x)
        return state, state

    return lax.scan(body, init, xs)[1]


SEQUENTIAL = Solver(
    "lax.scan",
    _sequential,
    lambda weights, init, xs: (_sequential(weights, init, xs), None, None),
)


def _textbook(name: str, linearise: Linearise) -> "Solver":
    options = (TOLERANCE, TOLERANCE, linearise)
    return Solver(
        name,
        lambda weights, init, xs: textbook_deer(gru, weights, init, xs, *options),
        lambda weights, init, xs: (
            *textbook_sweeps(gru, weights, init, xs, *options),
            None,
        ),
    )


TEXTBOOK = _textbook("textbook DEER", apart)
TEXTBOOK_FUSED = _textbook("textbook DEER, fused", together)


def parafix_solver(name: str, **options: Any) -> Solver:
    """`parafix.deer.jax.scan` with options."""

    def solve(weights, init, xs, **more):
        def body(state, x):
            state = gru(weights, state, x)
            return state, state

        return scan(body, init, xs, **options, **more)

    def informed(weights, init, xs):
        (_, states), solution = solve(
            weights, init, xs, throw=False, return_solution=True
        )
        chosen = options.get("solver", "auto")
        if chosen == "auto":
            chosen = choose(xs.shape[0], init.size, jax.default_backend()).solver
        # The sequential program has no sweeps to count.
        sweeps = None if chosen == "sequential" else solution.stats["num_steps"]
        return states, sweeps, codes_of(solution.result)

    return Solver(name, lambda *arguments: solve(*arguments)[1], informed)
