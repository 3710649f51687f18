"""Derivatives inside of `torch.inference_mode()`, which would be zero in silence."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Copies(TorchFunctionMode):
    """Puts copies in the place of what was made in inference mode: graphs hold these.

    One of each, in what is handed to the functions of PyTorch.
    """

    def __init__(self):
        super().__init__()
        # With the tensors, so that no other can have their `id`.
        self.made: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tree: Any) -> Any:
        """`tree` with copies, in the containers that PyTorch's own functions take."""
        if isinstance(tree, Tensor):
            return self._of_one(tree) if tree.is_inference() else tree
        if type(tree) in (tuple, list):
            return type(tree)([self.of(x) for x in tree])
        if type(tree) is dict:
            return {key: self.of(x) for key, x in tree.items()}
        return tree

    def _of_one(self, x):
        if id(x) not in self.made:
            self.made[id(x)] = x, x.clone()
        return self.made[id(x)][1]

    def inside(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` with copies of all that it uses."""

        def with_copies(*args: Any) -> Any:
            with self:
                return fn(*args)

        return with_copies

    def __torch_function__(self, func, types, args=(), kwargs=None):
        del types
        return func(*self.of(args), **self.of(kwargs or {}))


@contextlib.contextmanager
def out_of_inference() -> Iterator[Copies | None]:
    """Where solvers take derivatives, of which inference mode records none.

    It gives way to `torch.no_grad()`, and there are copies to be taken. Otherwise there
    is `None`, and nothing happens.
    """
    if not torch.is_inference_mode_enabled():
        yield None
        return
    with torch.inference_mode(False), torch.no_grad():
        yield Copies()


def check_recording() -> None:
    """Raises `RuntimeError` in inference mode, where every derivative looks like zero.

    To be asked where something is seen not to depend on anything.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "There are no derivatives inside of `torch.inference_mode()`; use "
            "`torch.no_grad()` here, or `torch.inference_mode(False)`."
        )
