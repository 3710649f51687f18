"""Recurrent cells whose units do not see each other.

Here and in `_mixing_cells.py`: `(carry, x) -> (carry, y)`, with the structure of the
Jacobian declared. Parameters are those of the JAX half, by name and shape. All of it
takes any leading axes: one time `(B, ...)`, or all of them `(T, B, ...)`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import nn, Tensor
from torch.nn import functional as F

from parafix.core.torch import AbstractStructure, Blocks, Diagonal


_State = Float[Tensor, "*lead n"]
_Input = Float[Tensor, "*lead d"]


class DiagonalGRUCell(nn.Module):
    """A GRU whose units do not see each other: recurrent weights are vectors.

    `r = σ(w_r h + U_r x + b_r)`, `u = σ(w_u h + U_u x + b_u)`,
    `c = tanh(w_c (r h) + U_c x + b_c)`, `h' = u h + (1 - u) c`, with products of
    vectors entry by entry. The Jacobian is diagonal,

    `∂h'/∂h = u + (h - c) u(1-u) w_u + (1-u)(1-c²) w_c (r + h r(1-r) w_r)`,

    so that a sweep of DEER costs `O(T n)` in time and memory. Units meet in the layer
    that follows.

    **Arguments:**

    - `input_size`: `d`.
    - `hidden_size`: `n`.

    **Attributes:**

    Parameters `state` `(3, n)`, `input` `(3, n, d)` and `bias` `(3, n)`.

    ??? cite "Reference"

        Cho et al., "Learning phrase representations using RNN encoder-decoder for
        statistical machine translation", EMNLP 2014, equations 5 to 8, with biases and
        diagonal recurrent weights as in Danieli et al., "ParaRNN: Unlocking parallel
        training of nonlinear RNNs for large language models", 2025.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        bound, like = hidden_size**-0.5, {"device": device, "dtype": dtype}
        # Of each other's units there is nothing to sum over.
        self.state = uniform((3, hidden_size), 1.0, **like)
        self.input = uniform((3, hidden_size, input_size), bound, **like)
        self.bias = uniform((3, hidden_size), bound, **like)

    @property
    def structure(self) -> AbstractStructure:
        """Diagonal."""
        return Diagonal()

    def initial(self, samples: int = 1) -> Float[Tensor, "B n"]:
        """The carry before the first step: zeros `(B, n)`."""
        return self.bias.new_zeros(samples, self.bias.shape[-1])

    def forward(self, carry: _State, x: _Input) -> tuple[_State, _State]:
        h = self._evaluated(carry, x)[0]
        return h, h

    def linearised(self, carry: _State, x: _Input) -> tuple[_State, _State]:
        """The next carry, and the diagonal of its Jacobian."""
        out, reset, update, new = self._evaluated(carry, x)
        w_reset, w_update, w_new = self.state
        inner = w_new * (reset + carry * reset * (1 - reset) * w_reset)
        inner = (1 - update) * (1 - new * new) * inner
        return out, update + (carry - new) * update * (1 - update) * w_update + inner

    def _evaluated(self, h, x):
        a_reset, a_update, a_new = gates(self.input, self.bias, x)
        w_reset, w_update, w_new = self.state
        reset = torch.sigmoid(a_reset + w_reset * h)
        update = torch.sigmoid(a_update + w_update * h)
        new = torch.tanh(a_new + w_new * (reset * h))
        return update * h + (1 - update) * new, reset, update, new


class DiagonalLSTMCell(nn.Module):
    """An LSTM whose units do not see each other; the carry is `(h, c)`.

    `i, f, o = σ(w h + U x + b)`, `g = tanh(w_g h + U_g x + b_g)`, `c' = f c + i g`,
    `h' = o tanh(c')`, with products of vectors entry by entry. The `h` and `c` of a
    unit depend on each other: the Jacobian consists of `2 x 2` blocks. With
    `s = tanh(c')` and `k = o (1 - s²)`,

    `∂c'/∂h = f(1-f) c w_f + i(1-i) g w_i + i (1-g²) w_g`, `∂c'/∂c = f`,
    `∂h'/∂h = k ∂c'/∂h + o(1-o) s w_o`, `∂h'/∂c = k f`.

    **Arguments:**

    - `input_size`: `d`.
    - `hidden_size`: `n`.

    **Attributes:**

    Parameters `state` `(4, n)`, `input` `(4, n, d)` and `bias` `(4, n)`, of `i`, `f`,
    `o` and `g`.

    ??? cite "Reference"

        Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation, 1997,
        with the forget gate of Gers, Schmidhuber and Cummins, 2000, and diagonal
        recurrent weights.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        bound, like = hidden_size**-0.5, {"device": device, "dtype": dtype}
        self.state = uniform((4, hidden_size), 1.0, **like)
        self.input = uniform((4, hidden_size, input_size), bound, **like)
        self.bias = uniform((4, hidden_size), bound, **like)

    @property
    def structure(self) -> AbstractStructure:
        """Blocks of the `h` and the `c` of a unit."""
        return Blocks(2, leaves=2)

    def initial(
        self, samples: int = 1
    ) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]:
        """The carry before the first step: two times zeros `(B, n)`."""
        zeros = self.bias.new_zeros(samples, self.bias.shape[-1])
        return zeros, zeros

    def forward(
        self, carry: tuple[_State, _State], x: _Input
    ) -> tuple[tuple[_State, _State], _State]:
        h, c, *_ = self._evaluated(carry, x)
        return (h, c), h

    def linearised(
        self, carry: tuple[_State, _State], x: _Input
    ) -> tuple[tuple[_State, _State], Float[Tensor, "*lead n 2 2"]]:
        """The next carry, and the block of each unit."""
        h, c, enter, forget, leave, new = self._evaluated(carry, x)
        w_enter, w_forget, w_leave, w_new = self.state
        squashed = torch.tanh(c)
        c_h = forget * (1 - forget) * carry[1] * w_forget
        c_h = c_h + enter * (1 - enter) * new * w_enter
        c_h = c_h + enter * (1 - new * new) * w_new
        into = leave * (1 - squashed * squashed)
        h_h = into * c_h + leave * (1 - leave) * squashed * w_leave
        rows = torch.stack([h_h, into * forget, c_h, forget], -1)
        return (h, c), rows.unflatten(-1, (2, 2))

    def _evaluated(self, carry, x):
        h, c = carry
        a = gates(self.input, self.bias, x)
        pairs = zip(a, self.state, strict=True)
        enter, forget, leave, new = (a + w * h for a, w in pairs)
        enter, forget, leave = enter.sigmoid(), forget.sigmoid(), leave.sigmoid()
        new = new.tanh()
        c = forget * c + enter * new
        return leave * torch.tanh(c), c, enter, forget, leave, new


def uniform(shape, bound, **like):
    return nn.Parameter(torch.empty(shape, **like).uniform_(-bound, bound))


def gates(weights, bias, x):
    """`U x + b` for each of the gates; one product for all of them."""
    a = F.linear(x, weights.flatten(0, 1), bias.flatten())
    return a.chunk(len(weights), -1)
