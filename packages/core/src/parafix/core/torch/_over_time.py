"""A function of one time, at many times at once."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


def over_time(fn: Callable[..., Any], *trees: Any) -> Any:
    """`fn` at all times at once, by `torch.func.vmap`.

    `fn` sees the shapes of one time. PyTorch's recurrent cells, which cannot be mapped
    as they are, are computed by their formulas.

    **Arguments:**

    - `fn`: of as many pytrees as there are, to any pytree of tensors, numbers and
        `None`.
    - `trees`: pytrees whose tensors have time as their first axis; other leaves are
        handed over as they are.

    **Returns:**

    What `fn` returns, with time as the first axis of every leaf but `None`.
    """
    tensors, joined = parted(trees)
    form: list[Any] = []

    def at_one_time(*tensors):
        leaves, structure = pytree.tree_flatten(fn(*joined(tensors)))
        form[:] = structure, [x is None for x in leaves]
        return tuple(torch.as_tensor(x) for x in leaves if x is not None)

    with _CellsByFormula():
        out = torch.func.vmap(at_one_time)(*tensors)
    for made in _listening.stack:
        made.update(map(id, out))
    found = iter(out)
    structure, missing = form
    leaves = [None if none else next(found) for none in missing]
    return pytree.tree_unflatten(leaves, structure)


class _Listening(threading.local):
    def __init__(self):
        self.stack: list[set[int]] = []


_listening = _Listening()


@contextlib.contextmanager
def told(made: set[int]) -> Iterator[None]:
    """Puts the `id`s of what `over_time` returns into `made`.

    A `TorchFunctionMode` sees what functions of PyTorch return, but not `vmap`.
    """
    _listening.stack.append(made)
    try:
        yield
    finally:
        _listening.stack.pop()


def parted(tree: Any) -> tuple[list[Tensor], Callable[[Any], Any]]:
    """The tensors of a pytree, and how to put others in their place."""
    leaves, spec = pytree.tree_flatten(tree)
    tensors = [x for x in leaves if isinstance(x, Tensor)]

    def joined(others):
        rest = iter(others)
        full = [next(rest) if isinstance(x, Tensor) else x for x in leaves]
        return pytree.tree_unflatten(full, spec)

    return tensors, joined


def _gru(x, h, w_x, w_h, b_x=None, b_h=None):
    reset_x, update_x, new_x = linear(x, w_x, b_x).chunk(3, -1)
    reset_h, update_h, new_h = linear(h, w_h, b_h).chunk(3, -1)
    reset = torch.sigmoid(reset_x + reset_h)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + reset * new_h)
    return new + update * (h - new)


def _lstm(x, state, w_x, w_h, b_x=None, b_h=None):
    h, c = state
    gates = linear(x, w_x, b_x) + linear(h, w_h, b_h)
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _rnn(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(x, h, w_x, w_h, b_x=None, b_h=None):
        return activation(linear(x, w_x, b_x) + linear(h, w_h, b_h))

    return cell


# What `torch.nn.GRUCell` and its like call.
_FORMULAS: dict[Any, Callable[..., Any]] = {
    torch.gru_cell: _gru,
    torch.lstm_cell: _lstm,
    torch.rnn_tanh_cell: _rnn(torch.tanh),
    torch.rnn_relu_cell: _rnn(torch.relu),
}


class _CellsByFormula(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        del types
        fn: Any = _FORMULAS.get(func, func)
        return fn(*args, **(kwargs or {}))
