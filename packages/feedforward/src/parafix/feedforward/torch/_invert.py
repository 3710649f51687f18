from typing import Any

import torch
from torch import Tensor

from parafix.core.torch import AbstractCausalSweep, Sequential, Solution

from ._adapter import adapter_of
from ._solves import CausalSolves


def invert(
    transform: Any,
    y: Tensor,
    context: Any = None,
    *,
    solver: str | AbstractCausalSweep | Sequential = "jacobi",
    mode: str = "exact",
    rtol: Any = None,
    atol: Any = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> tuple[Tensor, Tensor, Solution[Tensor]]:
    """The inverse of a normalizing flow, as its library computes it, but sooner.

    The inverse of a masked autoregressive transform goes entry by entry: libraries call
    the network once for each, always at full size. Here it is a causal problem, and
    [`parafix.feedforward.torch.solve_causal`][] ends as soon as two passes agree. What
    else a flow consists of (permutations, couplings, linear layers, compositions) is
    run by the library's own code.

    !!! example

        ```python
        flow = zuko.flows.MAF(features=784, context=10)
        x, log_abs_det, solution = invert(flow, y, context)
        x, log_abs_det = flow.transform(context).inv.call_and_ladj(y)  # the same bits
        ```

    **Arguments:**

    - `transform`: what is to be inverted; it is not changed.
        *nflows*: a `Transform`, or a `Flow`, whose transform and embedding are taken.
        *normflows*: a `Flow`, or a `NormalizingFlow`; its `inverse` is meant.
        *zuko*: a `LazyTransform` or a `Flow`; or a `Transform` that is built, of
        zuko's or composed of such.
        What an [`parafix.feedforward.torch.AbstractFlowAdapter`][] knows.
        The other direction is the inverse of `InverseTransform(transform)` in nflows,
        of `Reverse(flow)` in normflows, of `transform.inv` in zuko.
    - `y`: as the library takes it, the samples on the leading axes.
    - `context`: as the library takes it.
    - `solver`, `mode`, `rtol`, `atol`, `max_steps`, `throw`: those of each
        [`parafix.feedforward.torch.solve_causal`][]. The sweeps have the bits of the
        library's loop with `mode="exact"`.

    **Returns:**

    `x` and `log_abs_det`, as the library's own inverse returns them, and a
    [`parafix.core.torch.Solution`][] with `value=x`. For each sample, `result` and
    `position` are those of the first transform that failed; `num_steps`, `num_evals`
    (calls of networks) and `num_linear` are summed over the transforms, `residual` is
    the largest, and the prefixes, in the order of computation, are the shortest.
    `stats["num_steps_each"]`, `(transforms, ...)`, has the sweeps of each that needed
    some, in the order of inversion. A flow with nothing autoregressive in it is
    inverted by its library alone, in zero steps.

    Derivatives are those of the inverse, in `y`, in the context and in the parameters.

    An iterate that overflows on the way does not reach what is final: where the
    library's loop returns NaN for that reason alone, this does not.

    **Raises:**

    `TypeError` for a transform that nobody knows, `ValueError` for one that draws
    random numbers or normalises over the batch (`transform.eval()` ends both), what
    the library raises, and with `throw=True` a `RuntimeError` with the sentence of the
    result.

    ??? cite "Reference"

        Papamakarios, Pavlakou and Murray, "Masked autoregressive flow for density
        estimation", NeurIPS 2017, equations 3 to 5. Song, Meng, Liao and Ermon,
        "Accelerating feedforward computation via parallel nonlinear equation solving",
        ICML 2021, algorithm 1.
    """
    adapter = adapter_of(transform)
    solve = CausalSolves(
        solver=solver,
        mode=mode,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        throw=throw,
    )
    x, log_abs_det = adapter.inverse(transform, y, context, solve)
    with torch.no_grad():
        return x, log_abs_det, solve.summary(x, log_abs_det.shape)
