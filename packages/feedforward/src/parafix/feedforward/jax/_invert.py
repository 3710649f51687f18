from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from parafix.core.jax import AbstractCausalSweep, Sequential, Solution

from ._adapter import adapter_of
from ._solves import CausalSolves


def invert(
    transform: Any,
    y: ArrayLike,
    context: Any = None,
    *,
    solver: str | AbstractCausalSweep | Sequential = "jacobi",
    mode: str = "exact",
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> tuple[Array, Array, Solution[Array]]:
    """The inverse of a normalizing flow, as its library computes it, but sooner.

    The inverse of a masked autoregressive transform goes entry by entry: libraries call
    the network once for each, always at full size. Here it is a causal problem, and
    [`parafix.feedforward.jax.solve_causal`][] ends as soon as two passes agree. What
    else a flow consists of (permutations, couplings, linear layers, compositions) is
    run by the library's own code.

    Written for one sample; batches come by `jax.vmap`, in which every sample stops by
    itself.

    !!! example

        ```python
        flow = masked_autoregressive_flow(key, base_dist=Normal(jnp.zeros(784)))
        # To draw samples, flowjax goes through the inverse of this one:
        x, log_abs_det, solution = invert(flow.bijection.bijection, z)
        x, log_abs_det = flow.bijection.bijection.inverse_and_log_det(z)  # before
        ```

    **Arguments:**

    - `transform`: what is to be inverted: a bijection of flowjax (of a distribution,
        its attribute `bijection`), or what an
        [`parafix.feedforward.jax.AbstractFlowAdapter`][] knows. The other direction is
        the inverse of flowjax's `Invert(bijection)`.
    - `y`, `context`: as the library takes them, for one sample.
    - `solver`, `mode`, `rtol`, `atol`, `max_steps`, `throw`: those of each
        [`parafix.feedforward.jax.solve_causal`][].

    **Returns:**

    `x` and `log_abs_det`, as the library's own inverse returns them, and a
    [`parafix.core.jax.Solution`][] with `value=x`. `result` and `position` are those of
    the first transform that failed; `num_steps`, `num_evals` (calls of networks) and
    `num_linear` are summed over the transforms, `residual` is the largest, and the
    prefixes are the shortest. `stats["num_steps_each"]`, `(transforms,)`, has the
    sweeps of each that needed some, in the order of inversion. A flow with nothing
    autoregressive in it is inverted by its library alone, in zero steps.

    The loop of flowjax is one compiled program and the sweeps are another: their
    results may differ by rounding.

    Derivatives are those of the inverse, in `y`, in the context and in the parameters.

    **Raises:**

    `TypeError` for a transform that nobody knows, what the library raises, and at run
    time, with `throw=True`, the sentence of the result.

    ??? cite "Reference"

        Papamakarios, Pavlakou and Murray, "Masked autoregressive flow for density
        estimation", NeurIPS 2017, equations 3 to 5. Song, Meng, Liao and Ermon,
        "Accelerating feedforward computation via parallel nonlinear equation solving",
        ICML 2021, algorithm 1.
    """
    options = {
        "solver": solver,
        "mode": mode,
        "rtol": rtol,
        "atol": atol,
        "max_steps": max_steps,
        "throw": throw,
    }
    return _invert(adapter_of(transform), transform, jnp.asarray(y), context, options)


# One program for a structure of the transform and a shape.
@eqx.filter_jit
def _invert(adapter, transform, y, context, options):
    solve = CausalSolves(**options)
    x, log_abs_det = adapter.inverse(transform, y, context, solve)
    return x, log_abs_det, solve.summary(x)
