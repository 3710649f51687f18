"""Recurrent cells, `(carry, x) -> (carry, y)`, that declare the structure of theirs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from parafix.core.jax import AbstractStructure, Blocks, Dense, Diagonal


_State = Float[Array, " n"]


class DiagonalGRUCell(eqx.Module):
    """A GRU whose units do not see each other: recurrent weights are vectors.

    `r = σ(w_r h + U_r x + b_r)`, `u = σ(w_u h + U_u x + b_u)`,
    `c = tanh(w_c (r h) + U_c x + b_c)`, `h' = u h + (1 - u) c`, with products of
    vectors entry by entry. The Jacobian is diagonal, so that a sweep of DEER costs one
    tangent and a diagonal scan, `O(T n)` in time and memory. Units meet in the layer
    that follows.

    ??? cite "Reference"

        Cho et al., "Learning phrase representations using RNN encoder-decoder for
        statistical machine translation", EMNLP 2014, equations 5 to 8, with biases and
        diagonal recurrent weights as in Danieli et al., "ParaRNN: Unlocking parallel
        training of nonlinear RNNs for large language models", 2025.
    """

    state: Float[Array, "3 n"]
    input: Float[Array, "3 n d"]
    bias: Float[Array, "3 n"]

    def __init__(
        self, input_size: int, hidden_size: int, *, key: Any, dtype: Any = None
    ):
        keys = jax.random.split(key, 3)
        bound = hidden_size**-0.5
        # Of each other's units there is nothing to sum over.
        self.state = _uniform(keys[0], (3, hidden_size), 1.0, dtype)
        self.input = _uniform(keys[1], (3, hidden_size, input_size), bound, dtype)
        self.bias = _uniform(keys[2], (3, hidden_size), bound, dtype)

    @property
    def structure(self) -> AbstractStructure:
        """Diagonal."""
        return Diagonal()

    def initial(self) -> _State:
        """The carry before the first step: zeros `(n,)`."""
        return jnp.zeros_like(self.bias[0])

    def __call__(self, carry: _State, x: Float[Array, " d"]) -> tuple[_State, _State]:
        a = _product(self.input, x) + self.bias
        reset, update = jax.nn.sigmoid(a[:2] + self.state[:2] * carry[None])
        candidate = jnp.tanh(a[2] + self.state[2] * (reset * carry))
        h = update * carry + (1 - update) * candidate
        return h, h


class DiagonalLSTMCell(eqx.Module):
    """An LSTM whose units do not see each other; the carry is `(h, c)`.

    `i, f, o = σ(w h + U x + b)`, `c' = f c + i tanh(w_c h + U_c x + b_c)`,
    `h' = o tanh(c')`, with products of vectors entry by entry. The `h` and `c` of a
    unit depend on each other: the Jacobian consists of `2 x 2` blocks.

    ??? cite "Reference"

        Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation, 1997,
        with the forget gate of Gers, Schmidhuber and Cummins, 2000, and diagonal
        recurrent weights.
    """

    state: Float[Array, "4 n"]
    input: Float[Array, "4 n d"]
    bias: Float[Array, "4 n"]

    def __init__(
        self, input_size: int, hidden_size: int, *, key: Any, dtype: Any = None
    ):
        keys = jax.random.split(key, 3)
        bound = hidden_size**-0.5
        self.state = _uniform(keys[0], (4, hidden_size), 1.0, dtype)
        self.input = _uniform(keys[1], (4, hidden_size, input_size), bound, dtype)
        self.bias = _uniform(keys[2], (4, hidden_size), bound, dtype)

    @property
    def structure(self) -> AbstractStructure:
        """Blocks of the `h` and the `c` of a unit."""
        return Blocks(2, leaves=2)

    def initial(self) -> tuple[_State, _State]:
        """The carry before the first step: two times zeros `(n,)`."""
        return jnp.zeros_like(self.bias[0]), jnp.zeros_like(self.bias[0])

    def __call__(
        self, carry: tuple[_State, _State], x: Float[Array, " d"]
    ) -> tuple[tuple[_State, _State], _State]:
        h, c = carry
        a = _product(self.input, x) + self.bias + self.state * h[None]
        enter, forget, leave = jax.nn.sigmoid(a[:3])
        c = forget * c + enter * jnp.tanh(a[3])
        h = leave * jnp.tanh(c)
        return (h, c), h


class MultiHeadGRUCell(eqx.Module):
    """A GRU of independent heads, with a stride in time.

    Heads of `d` units see themselves alone, so the Jacobian consists of `d x d` blocks.
    With a stride of `s`, the state at time `t` follows from that at `t - s`: one step
    takes `s` consecutive inputs to `s` states which do not see each other either, and
    there are `T / s` steps. Long strides reach far back in few steps.

    `fold` turns a sequence `(T, inputs)` into the inputs of the steps, `unfold` their
    outputs into a sequence `(T, heads d)`:

    ```python
    _, ys = scan(cell, cell.initial(), cell.fold(xs))
    ys = cell.unfold(ys, len(xs))
    ```

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024, appendix: the multi-head strided GRU of its
        experiment on sequential CIFAR-10.
    """

    state: Float[Array, "heads 3 d d"]
    input: Float[Array, "heads 3 d inputs"]
    bias: Float[Array, "heads 3 d"]
    stride: int = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        num_heads: int,
        head_size: int,
        stride: int = 1,
        *,
        key: Any,
        dtype: Any = None,
    ):
        if stride < 1:
            raise ValueError(f"`stride` must be at least 1, got {stride}.")
        keys = jax.random.split(key, 3)
        bound, shape = head_size**-0.5, (num_heads, 3, head_size)
        self.state = _uniform(keys[0], (*shape, head_size), bound, dtype)
        self.input = _uniform(keys[1], (*shape, input_size), bound, dtype)
        self.bias = _uniform(keys[2], shape, bound, dtype)
        self.stride = stride

    @property
    def structure(self) -> AbstractStructure:
        """Blocks: one for every head and every time of a stride."""
        return Blocks(self.bias.shape[-1])

    def initial(self) -> Float[Array, "stride heads d"]:
        """The carry before the first step: zeros."""
        heads, _, size = self.bias.shape
        return jnp.zeros((self.stride, heads, size), self.bias.dtype)

    def fold(self, xs: Float[Array, "T inputs"]) -> Float[Array, "steps stride inputs"]:
        """The inputs of `ceil(T / stride)` steps; zeros where some are missing."""
        missing = -len(xs) % self.stride
        xs = jnp.concatenate([xs, jnp.zeros((missing, xs.shape[1]), xs.dtype)])
        return xs.reshape(-1, self.stride, xs.shape[1])

    def unfold(
        self, ys: Float[Array, "steps stride out"], length: int
    ) -> Float[Array, "T out"]:
        """The outputs of all steps, in the order of time, as far as `length`."""
        return ys.reshape(-1, ys.shape[-1])[:length]

    def __call__(
        self,
        carry: Float[Array, "stride heads d"],
        x: Float[Array, "stride inputs"],
    ) -> tuple[Float[Array, "stride heads d"], Float[Array, "stride out"]]:
        def head(state, input, bias, h, x):
            a = _product(input, x) + bias
            reset, update = jax.nn.sigmoid(a[:2] + _product(state[:2], h))
            candidate = jnp.tanh(a[2] + _product(state[2], reset * h))
            return update * h + (1 - update) * candidate

        heads = jax.vmap(head, in_axes=(0, 0, 0, 0, None))
        lanes = jax.vmap(heads, in_axes=(None, None, None, 0, 0))
        h = lanes(self.state, self.input, self.bias, carry, x)
        return h, h.reshape(self.stride, -1)


class LEMCell(eqx.Module):
    """Long Expressive Memory: two states, each with time scales that are learnt.

    With the carry `(y, z)`, `t_1 = dt σ(W_1 y + V_1 x + b_1)` and
    `t_2 = dt σ(W_2 y + V_2 x + b_2)`, products with them entry by entry:

    `z' = (1 - t_1) z + t_1 tanh(W_z y + V_z x + b_z)`,
    `y' = (1 - t_2) y + t_2 tanh(W_y z' + V_y x + b_y)`.

    Its Jacobian is dense, of `2 n` entries.

    ??? cite "Reference"

        Rusch, Mishra, Erichson and Mahoney, "Long expressive memory for sequence
        modeling", ICLR 2022, section 2.
    """

    state: Float[Array, "4 n n"]
    input: Float[Array, "4 n d"]
    bias: Float[Array, "4 n"]
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dt: float = 1.0,
        *,
        key: Any,
        dtype: Any = None,
    ):
        keys = jax.random.split(key, 3)
        bound, shape = hidden_size**-0.5, (4, hidden_size)
        self.state = _uniform(keys[0], (*shape, hidden_size), bound, dtype)
        self.input = _uniform(keys[1], (*shape, input_size), bound, dtype)
        self.bias = _uniform(keys[2], shape, bound, dtype)
        self.dt = dt

    @property
    def structure(self) -> AbstractStructure:
        """Dense."""
        return Dense()

    def initial(self) -> tuple[_State, _State]:
        """The carry before the first step: two times zeros `(n,)`."""
        return jnp.zeros_like(self.bias[0]), jnp.zeros_like(self.bias[0])

    def __call__(
        self, carry: tuple[_State, _State], x: Float[Array, " d"]
    ) -> tuple[tuple[_State, _State], _State]:
        y, z = carry
        a = _product(self.input, x) + self.bias
        b = _product(self.state[:3], y)
        t_1, t_2 = self.dt * jax.nn.sigmoid(a[:2] + b[:2])
        z = (1 - t_1) * z + t_1 * jnp.tanh(a[2] + b[2])
        y = (1 - t_2) * y + t_2 * jnp.tanh(a[3] + _product(self.state[3], z))
        return (y, z), y


def _uniform(key, shape, bound, dtype):
    dtype = jnp.result_type(float) if dtype is None else dtype
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _product(a, x):
    # What GPUs do to float32 products by default leaves three digits of them, and the
    # tolerance asks for five.
    return jnp.matmul(a, x, precision=lax.Precision.HIGHEST)
