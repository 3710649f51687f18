import dataclasses
from typing import Any

import equinox as eqx
import jax
import optimistix as optx

from ._adjoint import as_adjoint, ImplicitAdjoint
from ._chain import Chain, chunk_size
from ._chain_adjoint import ChainAdjoint
from ._check_structure import verified
from ._custom_types import States
from ._structure import closed


_ENTRIES_ON_CPU = 2**15


@eqx.filter_jit
def attach(
    problem: Chain, z: States, *, adjoint: str | optx.AbstractAdjoint = "implicit"
) -> States:
    """States that were found in some way, with the derivatives of the chain.

    The value is `z` itself. Its derivatives, to every order and in both modes, are
    those of the solution of `problem` in all that the chain depends on; none of them
    passes through the way in which `z` was found. A loop that is not differentiated may
    so be followed by one reversed scan.

    **Arguments:**

    - `problem`: a [`parafix.core.jax.Chain`][] of length `T` and state size `n`.
    - `z`: shape `(T, n)`, the states that solve it. That they do is not checked.
    - `adjoint`: a [`parafix.core.jax.ChainAdjoint`][] or a registered name.

    **Returns:**

    `z`, shape `(T, n)`. Where it is NaN, so are its tangents.

    **Raises:**

    `ValueError` if `z` has another shape; at run time an error if a declared structure
    is found to be false, where derivatives are taken.
    """
    if z.shape != (problem.length, problem.size):
        raise ValueError(
            f"`z` must have shape {(problem.length, problem.size)}, one state for "
            f"every time; got {z.shape}."
        )
    # Nothing but the recurrence is to be computed, and of a batch, which is not seen
    # here, blocks of so many times stay in the cache of a CPU.
    most = _ENTRIES_ON_CPU if jax.default_backend() == "cpu" else None
    adjoint = as_chain_adjoint(adjoint, problem, problem.length, most)
    if z.size == 0:
        return z
    options = {"problem": closed_chain(problem), "throw": True}
    inputs = (None, None, z, None, options)
    rewrite: Any = None
    return adjoint.apply(_given, rewrite, inputs, frozenset())[0]


def _given(inputs):
    return inputs[2], None


def as_chain_adjoint(
    adjoint: str | optx.AbstractAdjoint,
    problem: Chain,
    window: int,
    most_entries: int | None = None,
) -> optx.AbstractAdjoint:
    """What `adjoint` is for a chain; a window bounds the memory of gradients, too.

    Jacobian blocks of at most `most_entries` numbers are to be held at once.
    """
    adjoint = as_adjoint(adjoint)
    if isinstance(adjoint, ImplicitAdjoint):
        adjoint = ChainAdjoint()
    if isinstance(adjoint, ChainAdjoint) and adjoint.chunk is None:
        entries = 0 if adjoint.iterates(problem) else problem.num_entries
        chunk = min(window, chunk_size(None, problem.length, entries))
        if entries and most_entries is not None:
            chunk = min(chunk, most_entries // entries)
        adjoint = dataclasses.replace(adjoint, chunk=max(chunk, 1))
    return adjoint


def closed_chain(problem: Chain) -> Chain:
    """`problem`, of which all that its step closes over is part; it has some steps.

    So an adjoint sees it. At run time an error if its structure is false.
    """
    first = jax.tree.map(lambda x: x[0], problem.xs)
    step = closed(problem.step, problem.init, first)
    return verified(eqx.tree_at(lambda p: p.step, problem, step))
