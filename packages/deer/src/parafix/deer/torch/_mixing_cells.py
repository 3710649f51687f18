"""Recurrent cells whose units see each other: those of a head, or all of them."""

from typing import Any

import torch
from jaxtyping import Float
from torch import nn, Tensor
from torch.nn import functional as F

from parafix.core.torch import AbstractStructure, Blocks, Dense

from ._diagonal_cells import gates, uniform


_State = Float[Tensor, "*lead n"]
_Input = Float[Tensor, "*lead d"]


class MultiHeadGRUCell(nn.Module):
    """A GRU of independent heads, with a stride in time.

    Heads of `d` units see themselves alone, so the Jacobian consists of `d x d` blocks.
    With a stride of `s`, the state at time `t` follows from that at `t - s`: one step
    takes `s` consecutive inputs to `s` states which do not see each other either, and
    there are `T / s` steps. Long strides reach far back in few steps.

    `fold` turns a sequence `(T, B, inputs)` into the inputs of the steps, `unfold`
    their outputs into a sequence `(T, B, heads d)`:

    ```python
    _, ys = scan(cell, cell.initial(samples), cell.fold(xs))
    ys = cell.unfold(ys, len(xs))
    ```

    **Arguments:**

    - `input_size`, `num_heads`, `head_size`: the numbers of inputs, of heads, and `d`.
    - `stride`: `s`.

    **Attributes:**

    Parameters `state` `(heads, 3, d, d)`, `input` `(heads, 3, d, inputs)` and `bias`
    `(heads, 3, d)`.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024, appendix: the multi-head strided GRU of its
        experiment on sequential CIFAR-10.
    """

    def __init__(
        self,
        input_size: int,
        num_heads: int,
        head_size: int,
        stride: int = 1,
        *,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        if stride < 1:
            raise ValueError(f"`stride` must be at least 1, got {stride}.")
        bound, shape = head_size**-0.5, (num_heads, 3, head_size)
        like = {"device": device, "dtype": dtype}
        self.state = uniform((*shape, head_size), bound, **like)
        self.input = uniform((*shape, input_size), bound, **like)
        self.bias = uniform(shape, bound, **like)
        self.stride = stride

    @property
    def structure(self) -> AbstractStructure:
        """Blocks: one for every head and every time of a stride."""
        return Blocks(self.bias.shape[-1])

    def initial(self, samples: int = 1) -> Float[Tensor, "B stride heads d"]:
        """The carry before the first step: zeros."""
        heads, _, size = self.bias.shape
        return self.bias.new_zeros(samples, self.stride, heads, size)

    def fold(
        self, xs: Float[Tensor, "T B inputs"]
    ) -> Float[Tensor, "steps B stride inputs"]:
        """The inputs of `ceil(T / stride)` steps; zeros where some are missing."""
        missing = -len(xs) % self.stride
        xs = torch.cat([xs, xs.new_zeros(missing, *xs.shape[1:])])
        return xs.unflatten(0, (-1, self.stride)).transpose(1, 2)

    def unfold(
        self, ys: Float[Tensor, "steps B stride out"], length: int
    ) -> Float[Tensor, "T B out"]:
        """The outputs of all steps, in the order of time, as far as `length`."""
        return ys.transpose(1, 2).flatten(0, 1)[:length]

    def forward(
        self,
        carry: Float[Tensor, "*lead stride heads d"],
        x: Float[Tensor, "*lead stride inputs"],
    ) -> tuple[
        Float[Tensor, "*lead stride heads d"], Float[Tensor, "*lead stride out"]
    ]:
        h = self._evaluated(carry, x)[0]
        return h, h.flatten(-2)

    def linearised(
        self,
        carry: Float[Tensor, "*lead stride heads d"],
        x: Float[Tensor, "*lead stride inputs"],
    ) -> tuple[Float[Tensor, "*lead stride heads d"], Float[Tensor, "*lead k d d"]]:
        """The next carry, and the block of each head at each time of the stride."""
        out, reset, update, new = self._evaluated(carry, x)
        w_reset, w_update, w_new = self.state.unbind(1)
        column = lambda v: v.unsqueeze(-1)
        # The candidate sees `r h`, whose derivative is `r + h r(1-r) W_r`.
        through = w_new * (carry * reset * (1 - reset)).unsqueeze(-2)
        inner = w_new * reset.unsqueeze(-2) + through @ w_reset
        a = column((1 - update) * (1 - new * new)) * inner
        a = a + column((carry - new) * update * (1 - update)) * w_update
        a = a + torch.diag_embed(update)
        return out, a.flatten(-4, -3)

    def _evaluated(self, h, x):
        a = F.linear(x, self.input.flatten(0, 2), self.bias.flatten())
        a_reset, a_update, a_new = a.unflatten(-1, self.bias.shape).unbind(-2)
        w_reset, w_update, w_new = self.state.unbind(1)
        product = lambda w, h: (w @ h.unsqueeze(-1)).squeeze(-1)
        reset = torch.sigmoid(a_reset + product(w_reset, h))
        update = torch.sigmoid(a_update + product(w_update, h))
        new = torch.tanh(a_new + product(w_new, reset * h))
        return update * h + (1 - update) * new, reset, update, new


class LEMCell(nn.Module):
    """Long Expressive Memory: two states, each with time scales that are learnt.

    With the carry `(y, z)`, `t_1 = dt σ(W_1 y + V_1 x + b_1)` and
    `t_2 = dt σ(W_2 y + V_2 x + b_2)`, products with them entry by entry:

    `z' = (1 - t_1) z + t_1 tanh(W_z y + V_z x + b_z)`,
    `y' = (1 - t_2) y + t_2 tanh(W_y z' + V_y x + b_y)`.

    Its Jacobian is dense, of `2 n` entries.

    **Arguments:**

    - `input_size`: `d`.
    - `hidden_size`: `n`.
    - `dt`: the longest time scale.

    **Attributes:**

    Parameters `state` `(4, n, n)`, `input` `(4, n, d)` and `bias` `(4, n)`.

    ??? cite "Reference"

        Rusch, Mishra, Erichson and Mahoney, "Long expressive memory for sequence
        modeling", ICLR 2022, section 2.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dt: float = 1.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        bound, shape = hidden_size**-0.5, (4, hidden_size)
        like = {"device": device, "dtype": dtype}
        self.state = uniform((*shape, hidden_size), bound, **like)
        self.input = uniform((*shape, input_size), bound, **like)
        self.bias = uniform(shape, bound, **like)
        self.dt = dt

    @property
    def structure(self) -> AbstractStructure:
        """Dense."""
        return Dense()

    def initial(
        self, samples: int = 1
    ) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]:
        """The carry before the first step: two times zeros `(B, n)`."""
        zeros = self.bias.new_zeros(samples, self.bias.shape[-1])
        return zeros, zeros

    def forward(
        self, carry: tuple[_State, _State], x: _Input
    ) -> tuple[tuple[_State, _State], _State]:
        y, z = carry
        a = gates(self.input, self.bias, x)
        b = F.linear(y, self.state[:3].flatten(0, 1)).chunk(3, -1)
        t_1 = self.dt * torch.sigmoid(a[0] + b[0])
        t_2 = self.dt * torch.sigmoid(a[1] + b[1])
        z = (1 - t_1) * z + t_1 * torch.tanh(a[2] + b[2])
        y = (1 - t_2) * y + t_2 * torch.tanh(a[3] + F.linear(z, self.state[3]))
        return (y, z), y
