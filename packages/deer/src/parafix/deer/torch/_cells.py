"""The cells of the recurrent layers of `torch.nn`, and their Jacobians by formula.

All of it takes any leading axes: one time `(B, ...)`, or all of them `(T, B, ...)`.
"""

import abc
import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Of one layer in one direction, as `torch.nn` keeps them.

    - `inputs`: `(G h, i)`, and `states`: `(G h, p)`; `G` gates, one below the other.
    - `biases`: of the inputs and of the states, `(G h,)` each, or `None`.
    - `projection`: `(p, h)`, or `None`, in which case `p = h`.
    """

    inputs: Tensor
    states: Tensor
    biases: tuple[Tensor, Tensor] | None = None
    projection: Tensor | None = None

    @classmethod
    def of(cls, tensors: Sequence[Tensor], bias: bool) -> "Weights":
        """From an entry of `all_weights` of a module of `torch.nn`."""
        inputs, states, *rest = tensors
        biases = (rest[0], rest[1]) if bias else None
        return cls(inputs, states, biases, *(rest[2:] if bias else rest))

    def to(self, dtype: torch.dtype) -> "Weights":
        biases, projection = self.biases, self.projection
        return Weights(
            self.inputs.to(dtype),
            self.states.to(dtype),
            None if biases is None else (biases[0].to(dtype), biases[1].to(dtype)),
            None if projection is None else projection.to(dtype),
        )


class AbstractCell(abc.ABC):
    """One step of a recurrent layer, and its linearisation.

    A state holds `n` numbers, the inputs of a step arrive as the `g` numbers that they
    contribute to the gates.
    """

    @property
    @abc.abstractmethod
    def sizes(self) -> dict[str, int]:
        """The parts of a state, and how many numbers each has. The first of them is
        what the layer puts out.
        """

    @abc.abstractmethod
    def gates(self, x: Float[Tensor, "*lead i"]) -> Float[Tensor, "*lead g"]:
        """What the inputs contribute, biases included: one product for all times."""

    @abc.abstractmethod
    def step(
        self, z: Float[Tensor, "*lead n"], x: Float[Tensor, "*lead g"]
    ) -> Float[Tensor, "*lead n"]:
        """The next state."""

    @abc.abstractmethod
    def linearised(
        self, z: Float[Tensor, "*lead n"], x: Float[Tensor, "*lead g"]
    ) -> tuple[Float[Tensor, "*lead n"], Float[Tensor, "*lead n n"]]:
        """The next state and its Jacobian in `z`."""


@dataclasses.dataclass(frozen=True, eq=False)
class ElmanCell(AbstractCell):
    """`h' = act(x + W h)`, where `act` is `"tanh"` or `"relu"`: that of `nn.RNN`."""

    weights: Weights
    nonlinearity: str

    @property
    def sizes(self):
        return {"h": self.weights.states.shape[1]}

    def gates(self, x):
        return F.linear(x, self.weights.inputs, _sum_of_biases(self.weights))

    def step(self, z, x):
        total = x + F.linear(z, self.weights.states)
        return torch.tanh(total) if self.nonlinearity == "tanh" else torch.relu(total)

    def linearised(self, z, x):
        f = self.step(z, x)
        # At its kink PyTorch takes the derivative of relu for zero.
        slope = 1 - f * f if self.nonlinearity == "tanh" else (f > 0).to(f.dtype)
        return f, slope.unsqueeze(-1) * self.weights.states


@dataclasses.dataclass(frozen=True, eq=False)
class GRUCell(AbstractCell):
    """That of `nn.GRU`, whose reset gate acts after the product with the state:

    `r, u = σ(x + W h)`, `s = W_c h + b_c`, `c = tanh(x_c + r s)`,
    `h' = c + u (h - c)`.

    Its Jacobian is a sum of the weights with their rows scaled, and a diagonal:
    `(1-u)(1-c²) [r W_c + s r(1-r) W_r] + (h-c) u(1-u) W_u + diag(u)`.

    ??? cite "Reference"

        Cho et al., "Learning phrase representations using RNN encoder-decoder for
        statistical machine translation", EMNLP 2014, equations 5 to 8, with the reset
        gate where cuDNN has it.
    """

    weights: Weights

    @property
    def sizes(self):
        return {"h": self.weights.states.shape[1]}

    def gates(self, x):
        weights = self.weights
        if weights.biases is None:
            return F.linear(x, weights.inputs)
        # The state's bias of the candidate has its place inside of the reset gate.
        size = weights.states.shape[1]
        of_inputs, of_states = weights.biases
        outside = F.pad(of_states[: 2 * size], (0, size))
        return F.linear(x, weights.inputs, of_inputs + outside)

    def step(self, z, x):
        _, update, candidate, _ = self._evaluated(z, x)
        return candidate + update * (z - candidate)

    def linearised(self, z, x):
        reset, update, candidate, s = self._evaluated(z, x)
        excess = z - candidate
        # Of what is inside the candidate's tanh.
        inner = (1 - update) * (1 - candidate * candidate)
        behind = inner * reset
        rows = torch.stack(
            [behind * s * (1 - reset), excess * update * (1 - update), behind], -2
        )
        blocks = _scaled_rows(rows, self.weights.states)
        blocks.diagonal(dim1=-2, dim2=-1).add_(update)
        return candidate + update * excess, blocks

    def _evaluated(self, z, x):
        size = z.shape[-1]
        weights = self.weights
        of_state = F.linear(z, weights.states)
        gates = torch.sigmoid(x[..., : 2 * size] + of_state[..., : 2 * size])
        reset, update = gates.chunk(2, -1)
        s = of_state[..., 2 * size :]
        if weights.biases is not None:
            s = s + weights.biases[1][2 * size :]
        return reset, update, torch.tanh(x[..., 2 * size :] + reset * s), s


@dataclasses.dataclass(frozen=True, eq=False)
class LSTMCell(AbstractCell):
    """That of `nn.LSTM`, with or without a projection; a state is `h` and `c` jointly:

    `i, f, o = σ(x + W h)`, `g = tanh(x_g + W_g h)`,
    `c' = f c + i g`, `m = o tanh(c')`, `h' = m` or `h' = P m`.

    With `k = o (1 - tanh²(c'))`, and the rows of the weights scaled,
    `∂c'/∂h = f(1-f) c W_f + i(1-i) g W_i + i (1-g²) W_g`, `∂c'/∂c = diag(f)`,
    `∂m/∂h = k ∂c'/∂h + o(1-o) tanh(c') W_o`, `∂m/∂c = diag(k f)`.

    ??? cite "Reference"

        Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 1997,
        with the forget gate of Gers et al. (2000); the projection is that of Sak,
        Senior and Beaufays, "Long short-term memory based recurrent neural network
        architectures for large vocabulary speech recognition" (2014).
    """

    weights: Weights

    @property
    def sizes(self):
        gates, projected = self.weights.states.shape
        return {"h": projected, "c": gates // 4}

    def gates(self, x):
        return F.linear(x, self.weights.inputs, _sum_of_biases(self.weights))

    def step(self, z, x):
        return self._evaluated(z, x)[0]

    def linearised(self, z, x):
        out, c, (i, f, g, o), squashed = self._evaluated(z, x)
        into = o * (1 - squashed * squashed)
        of_new = (i * (1 - i) * g, f * (1 - f) * c, i * (1 - g * g))
        of_m = (*(into * row for row in of_new), o * (1 - o) * squashed)
        # Those of m, then those of c'.
        rows = torch.stack([*of_m, *of_new, torch.zeros_like(o)], -2)
        by_h = _scaled_rows(rows.unflatten(-2, (2, 4)), self.weights.states)
        by_c = torch.diag_embed(torch.stack([into * f, f], -2))
        blocks = torch.cat([by_h, by_c], -1)
        if self.weights.projection is None:
            return out, blocks.flatten(-3, -2)
        of_m, of_new = blocks.unbind(-3)
        return out, torch.cat([self.weights.projection @ of_m, of_new], -2)

    def _evaluated(self, z, x):
        projected = self.weights.states.shape[1]
        h, c = z[..., :projected], z[..., projected:]
        i, f, g, o = (x + F.linear(h, self.weights.states)).chunk(4, -1)
        i, f, o = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o)
        g = torch.tanh(g)
        new = f * c + i * g
        squashed = torch.tanh(new)
        m = o * squashed
        if self.weights.projection is not None:
            m = F.linear(m, self.weights.projection)
        return torch.cat([m, new], -1), c, (i, f, g, o), squashed


def _sum_of_biases(weights):
    return None if weights.biases is None else weights.biases[0] + weights.biases[1]


def _scaled_rows(rows, weight):
    """`sum_g diag(rows_g) W_g`: rows `(..., G, h)`, weight `(G h, p)` -> `(..., h, p)`.

    Measured on a CPU: as products of matrices, one for each row of the result, twice
    to five times as fast as products that broadcast.
    """
    count, size = rows.shape[-2:]
    blocks = weight.reshape(count, size, weight.shape[-1])
    return torch.einsum("...gi,gij->...ij", rows, blocks)
