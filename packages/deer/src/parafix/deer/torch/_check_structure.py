from collections.abc import Callable
from typing import Any

from torch.utils import _pytree as pytree

import parafix.core.torch
from parafix.core.torch import AbstractStructure

from ._carry import Layout
from ._job import Job
from ._scan import checked_length, checked_structure


def check_structure(
    f: Callable[[Any, Any], tuple[Any, Any]],
    structure: AbstractStructure,
    carry: Any,
    xs: Any,
) -> None:
    """Compare a declared structure with the whole Jacobian of `f`, at several points.

    !!! example

        ```python
        check_structure(cell, Diagonal(), h0, xs)      # or cell.structure
        ```

    The points are the carry, and random ones: near it, with the signs flipped, small
    and large, each with another of the inputs. Memory and time are those of some dense
    Jacobians. What happens at no such point is not seen.

    Every call of [`parafix.deer.torch.scan`][] with a declared structure makes a
    cheaper test by itself: one product with the Jacobian at each of these points.

    **Arguments:**

    - `f`: `(carry, x) -> (carry, y)`, as for `scan`.
    - `structure`: what is declared.
    - `carry`: a typical carry; leaves `(B, ...)`.
    - `xs`: inputs with time as the first axis of every leaf, `(T, B, ...)`; `None` if
        there are none.

    **Raises:**

    `ValueError` if the declaration is false: with the entry that is worst, what stands
    there, and at which carry. `TypeError` if a leaf of the carry that is no float
    depends on one that is, or if `structure` is none.
    """
    structure = checked_structure(structure)
    inputs = any(x is not None for x in pytree.tree_leaves(xs))
    length = checked_length(xs, None if inputs else 1)
    layout = Layout.of(carry)
    if length == 0:
        return
    job = Job(f, layout, carry, xs, length, False, None, None, structure)
    before, _ = job.run_drivers()
    parafix.core.torch.check_structure(job.chain(before))
