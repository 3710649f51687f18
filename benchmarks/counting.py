"""How often a program calls a function, counted while it runs, for any solver.

What solvers say of themselves cannot be compared: one counts steps, one leaves out the
call before the first step, none counts what its linear solver does. So the argument of
the function is passed through `counted`, which is the identity to every transformation
of JAX, and tells the host each time it is computed. The program that counts is not the
one that is timed.
"""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


@dataclasses.dataclass
class Counts:
    """What one run has called.

    - `evaluations`: values of the function.
    - `products`: directional derivatives (JVPs) and pullbacks (VJPs) of one vector
        each: a dense Jacobian of `n` unknowns is `n` of them.
    """

    evaluations: int = 0
    products: int = 0


# Equal programs share one compilation, and the callback in it: the counts are global.
# Callbacks come from threads of the runtime.
_found = Counts()
_lock = threading.Lock()


def counted(y: Any) -> Any:
    """The arrays of `y` as they are; the first of them reports that it was computed.

    For `f(counted(y))`, a value of `f` is an evaluation, and whatever is linear in
    tangents or cotangents of `y` is a product.
    """
    leaves, structure = jax.tree.flatten(y)
    leaves[0] = _count.bind(leaves[0], what="evaluations", weight=1)
    return jax.tree.unflatten(structure, leaves)


def run_counted(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Counts]:
    """`function(*arguments)` under `jit`, and what it has called."""
    _found.evaluations = _found.products = 0
    output = jax.block_until_ready(jax.jit(function)(*arguments))
    jax.effects_barrier()
    return output, dataclasses.replace(_found)


def _lowered(x, *, what, weight):
    def report():
        with _lock:
            setattr(_found, what, getattr(_found, what) + weight)

    jax.debug.callback(report)
    return x


def _jvp(primals, tangents, *, what, weight):
    (x,), (tangent,) = primals, tangents
    value = _count.bind(x, what=what, weight=weight)
    return value, _product(tangent, weight)


def _transpose(cotangent, x, *, what, weight):
    del x, what
    return [_product(cotangent, weight)]


def _product(vector, weight):
    if type(vector) is ad.Zero:
        return vector
    return _count.bind(vector, what="products", weight=weight)


def _batch(arguments, axes, *, what, weight):
    (x,), (axis,) = arguments, axes
    return _count.bind(x, what=what, weight=weight * x.shape[axis]), axis


_count = Primitive("count")
_count.def_abstract_eval(lambda x, **_: x)
_count.def_impl(_lowered)
ad.primitive_jvps[_count] = _jvp
ad.primitive_transposes[_count] = _transpose
batching.primitive_batchers[_count] = _batch
mlir.register_lowering(_count, mlir.lower_fun(_lowered, multiple_results=False))
