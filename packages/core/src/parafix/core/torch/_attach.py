from torch import Tensor

from ._adjoint import AbstractAdjoint
from ._capture import Autocast
from ._chain import Chain, States
from ._chain_problem import Found
from ._solve_chain import as_adjoint, widened


def attach(
    problem: Chain, z: States, *, adjoint: str | AbstractAdjoint = "implicit"
) -> States:
    """States that were found in some way, with the derivatives of the chain.

    The value is that of `z`. Its derivatives, to every order and in both modes, are
    those of the solution of `problem` in all that the chain depends on; none of them
    passes through the way in which `z` was found. A loop that records nothing may so be
    followed by one reversed scan.

    **Arguments:**

    - `problem`: a [`parafix.core.torch.Chain`][] of length `T` with states `(B, n)`.
    - `z`: shape `(T, B, n)`, the states that solve it. That they do is not checked.
    - `adjoint`: a [`parafix.core.torch.ChainAdjoint`][] or a registered name.

    **Returns:**

    The states, shape `(T, B, n)`. Where they are NaN, so are their tangents.

    **Raises:**

    `ValueError` if `z` has another shape, or if a declared structure is found to be
    false.
    """
    shape = (problem.length, *problem.init.shape)
    if tuple(z.shape) != shape:
        raise ValueError(
            f"`z` must have shape {shape}, one state for every time; got "
            f"{tuple(z.shape)}."
        )
    adjoint = as_adjoint(adjoint)
    if z.numel() == 0:
        return z
    autocast = Autocast.now(z.device)
    wide = widened(problem, autocast)
    eps = autocast.eps([z.dtype])
    task = Found(wide, autocast, eps, problem.length, throw=True)
    with autocast.entered(enabled=False):
        states: Tensor = adjoint.apply(task, z.detach().to(wide.init.dtype))[0]
    return states.to(z.dtype)
