"""The recurrent layers of `torch.nn`, solved for all times at once."""

from torch import nn

from ._cells import ElmanCell, GRUCell, LSTMCell
from ._recurrent import AbstractRecurrent


class RNN(AbstractRecurrent, nn.RNN):
    """A drop-in for `torch.nn.RNN` that can treat all times at once.

    See [`parafix.deer.torch.GRU`][] for what is added.
    """

    def _cell(self, weights):
        return ElmanCell(weights, self.nonlinearity)


class GRU(AbstractRecurrent, nn.GRU):
    """A drop-in for `torch.nn.GRU` that can treat all times at once.

    !!! example

        ```python
        import torch
        from parafix.deer.torch import GRU

        gru = GRU(4, 8, batch_first=True, solver="deer")
        gru.load_state_dict(torch.nn.GRU(4, 8).state_dict())
        output, h_n = gru(torch.randn(1, 10_000, 4))
        gru.info[0].stats["num_steps"]  # sweeps over all times
        ```

    It is a `torch.nn.GRU`: the same constructor, parameters, checkpoints, layouts
    (unbatched, batch first, packed) and results, and derivatives to any order. Layers
    and directions are solved one after the other.

    **Arguments:**

    Those of `torch.nn.GRU`, and by keyword:

    - `solver`: `"deer"` (Newton's method), any other registered sweep, a solver object,
        `"sequential"` (the kernel of PyTorch itself), or `"auto"`: the faster one, as
        [`parafix.deer.torch.choose_layer`][] has it.
    - `rtol`, `atol`: tolerances on the states; `eps^(3/4)` of their dtype by default.
    - `max_steps`: at most this many sweeps; by default the number of times, which
        always is enough.
    - `window`: solve this many times to the end before going on to the next. Bounds
        memory by `O(T n) + O(window n^2)`, gradients included.
    - `throw`: whether a solve that fails raises. If not, the module warns once, and
        returns the last iterate, right on its `converged_prefix`. `"auto"` does
        neither: it runs the kernel.

    **Attributes:**

    - `info`: of the last call, a [`parafix.deer.torch.LayerInfo`][] for each layer and
        direction, in the order of `all_weights`: what ran, and how it went.

    **Raises:**

    What the module of `torch.nn` raises, in its words.

    ??? note "Precision"

        Modules in half precision are solved in float32, and what is returned is rounded
        to their dtype. Under autocast the products with the inputs are taken in its
        dtype and the recurrence in that of the weights, which is that of what is
        returned.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024.
    """

    def _cell(self, weights):
        return GRUCell(weights)


class LSTM(AbstractRecurrent, nn.LSTM):
    """A drop-in for `torch.nn.LSTM` that can treat all times at once.

    See [`parafix.deer.torch.GRU`][] for what is added. A state is `h` and `c` jointly:
    its Jacobian blocks have `hidden_size + (proj_size or hidden_size)` rows.
    """

    def _cell(self, weights):
        return LSTMCell(weights)
