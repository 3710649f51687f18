import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._affine_scan import affine_scan
from ._custom_types import State
from ._scan import AbstractScan
from ._scan.algebra import apply


_Step = Callable[[State, Any], State]
_Matrix = Float[Array, "..."]


class AbstractStructure(eqx.Module):
    """Which entries of the Jacobian of a step may be other than zero.

    A declared structure is what the blocks of a chain cost: to form them, to hold them,
    to solve with them, in the sweeps of DEER, in certificates and in gradients. A
    Jacobian `a` is one array in the form of its structure: `(n, n)` if dense, `(n,)` if
    diagonal, `(n / d, d, d)` if it consists of blocks.

    A false declaration makes gradients false. So every solve compares a few products
    with the Jacobian, and [`parafix.core.jax.check_structure`][] compares it whole.
    """

    @abc.abstractmethod
    def shape(self, size: int) -> tuple[int, ...]:
        """The shape of a Jacobian for `size` entries; `ValueError` if it cannot be."""

    @abc.abstractmethod
    def vectors(self, v: Float[Array, "*batch n"]) -> Float[Array, "..."]:
        """`v` in the form in which Jacobians act on it."""

    @abc.abstractmethod
    def entries(self, v: Float[Array, "..."]) -> Float[Array, "*batch n"]:
        """The inverse of `vectors`."""

    @abc.abstractmethod
    def probes(self, size: int, dtype: Any) -> Float[Array, "p n"]:
        """Tangents from whose products the Jacobian can be read off."""

    @abc.abstractmethod
    def num_linear(self, size: int) -> int:
        """How many Jacobian-vector products a Jacobian takes for `size` entries."""

    @abc.abstractmethod
    def jacobian(self, step: _Step, z: State, x: Any) -> tuple[State, _Matrix]:
        """`step(z, x)` and its Jacobian in `z`."""

    def num_entries(self, size: int) -> int:
        """How many numbers a Jacobian holds for `size` entries."""
        return math.prod(self.shape(size))

    def apply(self, a: _Matrix, v: State) -> State:
        """`a v` at one time."""
        return self.entries(apply(a, self.vectors(v)))

    def diagonal(self, a: _Matrix) -> State:
        """The diagonal of `a` at one time."""
        if a.ndim == 1:
            return a
        return self.entries(jnp.diagonal(a, axis1=-2, axis2=-1))

    def dense(self, a: _Matrix, size: int) -> Float[Array, "n n"]:
        """`a` at one time as a matrix."""
        unit = jnp.eye(size, dtype=a.dtype)
        return jax.vmap(lambda v: self.apply(a, v), out_axes=1)(unit)

    def solve(
        self,
        a: _Matrix,
        b: Float[Array, "T n"],
        init: State,
        scan: str | AbstractScan,
        resets: Bool[Array, " T"] | None = None,
    ) -> Float[Array, "T n"]:
        """`x_t = a_t x_{t-1} + b_t`; `a` may be diagonal whatever the structure.

        Where `resets` is true, `x_t = b_t`, as in [`parafix.core.jax.affine_scan`][].
        """
        if a.ndim <= b.ndim + 1:
            return affine_scan(a, b, init, scan=scan, resets=resets)
        b, init = self.vectors(b), self.vectors(init)
        return self.entries(affine_scan(a, b, init, scan=scan, resets=resets))


class Dense(AbstractStructure):
    """Every entry of the state may depend on every other: `n` tangents, `n^2` numbers.

    What is assumed where nothing is declared.
    """

    def shape(self, size):
        return (size, size)

    def vectors(self, v):
        return v

    def entries(self, v):
        return v

    def probes(self, size, dtype):
        return jnp.eye(size, dtype=dtype)

    def num_linear(self, size):
        return size

    def jacobian(self, step, z, x):
        return _by_tangents(self, step, z, x)


class Diagonal(AbstractStructure):
    """Every entry of the state depends on itself alone: one tangent, `n` numbers."""

    def shape(self, size):
        return (size,)

    def vectors(self, v):
        return v

    def entries(self, v):
        return v

    def probes(self, size, dtype):
        # All columns at once: each row has one entry.
        return jnp.ones((1, size), dtype)

    def num_linear(self, size):
        del size
        return 1

    def jacobian(self, step, z, x):
        return _by_tangents(self, step, z, x)


class Blocks(AbstractStructure):
    """Blocks of `size` entries that depend on each other alone: `size` tangents.

    Of a carry of one leaf, block `k` is entries `k size, ..., (k + 1) size - 1`: the
    heads of a layer. If each block has its share in several leaves of one shape, as the
    `(h, c)` of an LSTM whose units do not mix, `leaves` says in how many: block `k` is
    then entries `k w, ..., (k + 1) w - 1` of each leaf, `w = size / leaves`. A complex
    leaf counts as two, its real part and its imaginary part.
    """

    size: int = eqx.field(static=True)
    leaves: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if self.size < 1 or self.leaves < 1 or self.size % self.leaves:
            raise ValueError(
                "`Blocks(size, leaves)` needs positive numbers, and a size that is a "
                f"multiple of leaves; got {self.size} and {self.leaves}."
            )

    def shape(self, size):
        if size % self.size:
            raise ValueError(
                f"A state of {size} entries has no blocks of {self.size} entries."
            )
        return (size // self.size, self.size, self.size)

    def vectors(self, v):
        *batch, size = v.shape
        count, width = size // self.size, self.size // self.leaves
        v = v.reshape(*batch, self.leaves, count, width)
        return jnp.swapaxes(v, -3, -2).reshape(*batch, count, self.size)

    def entries(self, v):
        *batch, count, _ = v.shape
        v = v.reshape(*batch, count, self.leaves, self.size // self.leaves)
        return jnp.swapaxes(v, -3, -2).reshape(*batch, count * self.size)

    def probes(self, size, dtype):
        # The same column of all blocks at once.
        count, _, width = self.shape(size)
        unit = jnp.eye(width, dtype=dtype)[:, None]
        return self.entries(jnp.broadcast_to(unit, (width, count, width)))

    def num_linear(self, size):
        del size
        return self.size

    def jacobian(self, step, z, x):
        return _by_tangents(self, step, z, x)


Blocks.__init__.__doc__ = """**Arguments:**

- `size`: the number of entries of a block, `d`.
- `leaves`: over how many leaves of the carry the entries of a block are spread.
"""


class Custom(AbstractStructure):
    """A Jacobian that the user supplies: no tangent of the step is taken for it.

    `function(z, x)` returns the Jacobian of the step in the shape that `form` says. In
    [`parafix.core.jax.Chain`][] it takes the state `(n,)`; a verb whose carry is a
    pytree hands it the carry. Gradients use it, and second derivatives differentiate
    it, so it must be the Jacobian itself and no approximation.
    """

    function: Callable[[Any, Any], _Matrix]
    form: AbstractStructure = Dense()

    def shape(self, size):
        return self.form.shape(size)

    def vectors(self, v):
        return self.form.vectors(v)

    def entries(self, v):
        return self.form.entries(v)

    def probes(self, size, dtype):
        return self.form.probes(size, dtype)

    def num_linear(self, size):
        del size
        return 0

    def jacobian(self, step, z, x):
        a = self.function(z, x)
        expected = self.form.shape(z.size)
        if jnp.shape(a) != expected:
            raise ValueError(
                f"The Jacobian of a structure {type(self.form).__name__} of {z.size} "
                f"entries must have shape {expected}; the function that was supplied "
                f"returned {jnp.shape(a)}."
            )
        return step(z, x), a.astype(z.dtype)


Custom.__init__.__doc__ = """**Arguments:**

- `function`: maps a state and an input to the Jacobian of the step there.
- `form`: the structure whose shape it has.
"""


class Structured(eqx.Module):
    """A step, and what is known of its Jacobian.

    A step is any callable; one that has an attribute `structure` declares it.
    """

    step: _Step
    structure: AbstractStructure

    def __check_init__(self):
        if not isinstance(self.structure, AbstractStructure):
            raise TypeError(
                "`structure` must be an AbstractStructure such as `Diagonal()` or "
                f"`Blocks(4)`, got {self.structure!r}."
            )

    def __call__(self, z: State, x: Any) -> State:
        return self.step(z, x)


Structured.__init__.__doc__ = """**Arguments:**

- `step`: maps a state `(n,)` and an input to the next state `(n,)`.
- `structure`: an [`parafix.core.jax.AbstractStructure`][].
"""


def structure_of(step: Any) -> AbstractStructure:
    """What `step` declares as its attribute `structure`; dense, if nothing."""
    structure = getattr(step, "structure", None)
    return structure if isinstance(structure, AbstractStructure) else Dense()


def closed(step: Any, z: State, x: Any) -> Any:
    """`step` as a pytree whose leaves are what it closes over; its structure kept."""
    structure = structure_of(step)
    converted = eqx.filter_closure_convert(step, z, x)
    if isinstance(structure, Custom):
        function = eqx.filter_closure_convert(structure.function, z, x)
        structure = Custom(function, structure.form)
    dense = isinstance(structure, Dense)
    return converted if dense else Structured(converted, structure)


def _by_tangents(structure, step, z, x):
    """One linearisation, and its products with the probes."""
    f, tangent = jax.linearize(lambda z: step(z, x), z)
    # The probes are the same at all times, so under `vmap` over time they are not
    # batched and their products with the linearisation are shared.
    columns = jax.vmap(tangent)(structure.probes(z.size, z.dtype))
    a = jnp.moveaxis(structure.vectors(columns), 0, -1)
    return f, a.reshape(structure.shape(z.size))
