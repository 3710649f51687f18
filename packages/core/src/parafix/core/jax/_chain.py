from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from ._custom_types import IntScalar, State, States
from ._segments import checked_resets
from ._structure import AbstractStructure, structure_of


_Carry = TypeVar("_Carry")


class Leaf(NamedTuple):
    """A part of a state: what messages call it, its size, and its rounding error."""

    name: str
    size: int
    eps: float


class Chain(eqx.Module):
    """A chain: `z_t = step(z_{t-1}, x_t)` for `t = 1, ..., T`, from `z_0 = init`.

    As one equation it is `z = f(z)` with `f(z)_t = step(z_{t-1}, x_t)`, whose Jacobian
    has its blocks just below the diagonal. With `resets` it is several chains, one
    after the other: where true, the step starts from `origin` instead of `z_{t-1}`,
    which it does not see, be it NaN; the block there is zero.
    """

    step: Callable[[State, Any], State]
    init: State
    xs: PyTree[Shaped[Array, "T ..."]]
    length: int = eqx.field(static=True)
    offset: Int[Array, ""] | int = 0
    stride: int = eqx.field(static=True, default=1)
    leaves: tuple[Leaf, ...] = eqx.field(static=True, default=())
    resets: Bool[Array, " T"] | None = None
    origin: State | None = None

    def __check_init__(self):
        for x in jax.tree.leaves(self.xs):
            if x.shape[:1] != (self.length,):
                raise ValueError(
                    f"Every leaf of `xs` must have `length` = {self.length} as its "
                    f"first axis, got shape {x.shape}."
                )
        if self.resets is not None:
            checked_resets(self.resets, self.length)
        if self.origin is not None and self.origin.shape != self.init.shape:
            raise ValueError(
                f"`origin` must have the shape of `init`, {self.init.shape}; got "
                f"{self.origin.shape}."
            )

    @property
    def eps(self) -> np.ndarray:
        """The relative rounding error of a step, for each entry of the state."""
        if not self.leaves:
            return np.full(self.size, jnp.finfo(self.init.dtype).eps)
        return np.repeat(
            [leaf.eps for leaf in self.leaves], [leaf.size for leaf in self.leaves]
        )

    @property
    def has_tangent(self) -> bool:
        """Whether `step` can be differentiated forward."""
        first = jax.tree.map(lambda x: x[0], self.xs)
        try:
            jax.eval_shape(lambda z, x: jacobian(self.step, z, x), self.init, first)
        except Exception:
            # Whatever keeps a function from it: a custom VJP, a callback.
            return False
        return True

    @property
    def structure(self) -> AbstractStructure:
        """What the step declares of its Jacobian, as its attribute `structure`."""
        return structure_of(self.step)

    @property
    def num_entries(self) -> int:
        """How many numbers its Jacobian holds, at every time."""
        return self.structure.num_entries(self.size)

    @property
    def size(self) -> int:
        """`n`, the number of entries of a state."""
        return self.init.shape[0]

    @property
    def start(self) -> State:
        """What a reset starts from."""
        return self.init if self.origin is None else self.origin

    def lag(self, z: States) -> States:
        """The state before each step: `z` one step later, `init` in front.

        After a reset: what it starts from.
        """
        before = jnp.concatenate([self.init[None], z[:-1]])
        if self.resets is None:
            return before
        return jnp.where(self.resets[:, None], self.start, before)

    def before(self, z: States, t: IntScalar) -> State:
        """`lag(z)` at one time."""
        before = jnp.where(t == 0, self.init, z[t - 1])
        if self.resets is None:
            return before
        return jnp.where(self.resets[t], self.start, before)

    def __call__(self, z: States) -> States:
        """`f(z)`: all steps at once."""
        return jax.vmap(self.step)(self.lag(z), self.xs)


Chain.__init__.__doc__ = """**Arguments:**

- `step`: maps a state `(n,)` and one slice of `xs` to the next state `(n,)`. What is
    known of its Jacobian it may declare as an attribute `structure`:
    [`parafix.core.jax.Structured`][] gives it one.
- `init`: shape `(n,)`, real floats: the state before the first step.
- `xs`: a pytree of arrays with `length` as their first axis; `None` if `step` takes no
    input.
- `length`: the number of steps `T >= 0`.
- `offset`, `stride`: entry `i` is called position `offset + stride * i` in messages.
- `leaves`: the [`parafix.core.jax.Leaf`][]s that a state consists of, in order; one of
    the dtype of `init` by default.
- `resets`: booleans `(T,)`, or `None` for no reset.
- `origin`: shape `(n,)`, what a reset starts from; `init` by default.
"""


def jacobian(
    step: Callable[[State, Any], State], z: State, x: Any
) -> tuple[State, Float[Array, "..."]]:
    """`step(z, x)` and its Jacobian in `z`, in the form of the structure of `step`.

    Where `step` declares none: `(n, n)`, by one linearisation and `n` tangents.
    """
    return structure_of(step).jacobian(step, z, x)


def scan_chunks(
    body: Callable[[_Carry, PyTree], tuple[_Carry, PyTree]],
    carry: _Carry,
    elements: PyTree[Shaped[Array, "T ..."]],
    length: int,
    chunk: int,
) -> tuple[_Carry, PyTree]:
    """As `lax.scan`, but `body` gets `chunk` consecutive elements at once.

    The last call gets what remains, and outputs are joined along their first axis.
    What `body` forms from its elements (Jacobian blocks, above all) is never held for
    more than one chunk.
    """
    if chunk >= length:
        return body(carry, elements)
    count, rest = divmod(length, chunk)
    head = count * chunk

    def split(x):
        return x[:head].reshape(count, chunk, *x.shape[1:])

    carry, out = lax.scan(body, carry, jax.tree.map(split, elements))
    out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
    if rest:
        carry, last = body(carry, jax.tree.map(lambda x: x[head:], elements))
        out = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), out, last)
    return carry, out


def chunk_size(chunk: int | None, length: int, entries: int) -> int:
    """How many steps to hold Jacobians of `entries` numbers for; `None` decides.

    On a CPU blocks that leave the cache, or need fresh pages, cost more than forming
    them. Elsewhere a loop over chunks would serialise the scan. Either way the numbers
    agree to rounding, so the backend may be read while tracing.
    """
    if chunk is not None:
        return max(1, min(chunk, length))
    if jax.default_backend() != "cpu" or entries < 64:
        return max(1, length)
    return max(1, min(length, 1000, 2**19 // entries))
