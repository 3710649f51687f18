from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

import parafix.core.jax
from parafix.core.jax import AbstractStructure

from ._carry import Layout
from ._job import as_chain, Job
from ._scan import check_lengths, checked_structure
from ._segments import Segments


def check_structure(
    f: Callable[[Any, Any], tuple[Any, Any]],
    structure: AbstractStructure,
    carry: PyTree,
    xs: PyTree,
) -> None:
    """Compare a declared structure with the whole Jacobian of `f`, at several points.

    !!! example

        ```python
        check_structure(cell, Diagonal(), h0, xs)      # or cell.structure
        ```

    The points are the carry, and random ones: near it, with the signs flipped, small
    and large, each with another of the inputs. Memory and time are those of some dense
    Jacobians. What happens at no such point is not seen.

    Every call of [`parafix.deer.jax.scan`][] with a declared structure makes a cheaper
    test by itself: one product with the Jacobian at each of these points.

    **Arguments:**

    - `f`: `(carry, x) -> (carry, y)`, as for `scan`.
    - `structure`: what is declared.
    - `carry`: a typical carry, with concrete values.
    - `xs`: inputs with time as the first axis of every leaf; `None` if there are none.

    **Raises:**

    `ValueError` if the declaration is false: with the entry that is worst, what stands
    there, and at which carry. `TypeError` if a leaf of the carry that is no float
    depends on one that is, or if `structure` is none.
    """
    structure = checked_structure(structure)
    check_lengths(xs)
    carry = jax.tree.map(jnp.asarray, carry)
    layout = Layout.of(jax.eval_shape(lambda carry: carry, carry))
    lengths = [jnp.shape(x)[0] for x in jax.tree.leaves(xs)]
    job = Job(
        f,
        layout,
        rtol=None,
        atol=None,
        length=lengths[0] if lengths else 1,
        reverse=False,
        unroll=1,
        max_steps=None,
        window=None,
        throw=True,
        return_solution=False,
        structure=structure,
    )
    xs = jax.tree.map(jnp.asarray, xs)
    job.inspect(carry, xs).check_drivers(layout)
    problem, _ = as_chain(job, carry, xs, Segments())
    parafix.core.jax.check_structure(problem)
