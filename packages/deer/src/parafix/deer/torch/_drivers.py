"""Leaves of a carry that are not floats, run ahead where they do not depend on floats.

What depends on what is read off a graph of `f`, which PyTorch makes by running it on
tensors without values. Whoever asks one of these for its value gets an error, so that
no dependence goes by way of Python; then nothing can be said.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ._carry import Layout


@dataclasses.dataclass(frozen=True, eq=False)
class Drivers:
    """The step of the drivers alone.

    **Attributes:**

    - `tainted`: for each driver that may depend on a float leaf: the names of both;
        `None` for the second if `f` could not be followed.
    - `program`: maps a carry's leaves and the tensors of `x` to the next drivers.
    """

    layout: Layout
    tainted: tuple[tuple[str, str | None], ...] = ()
    program: Callable[..., Any] | None = None

    @classmethod
    def of(cls, f: Callable, layout: Layout, init: Any, x: Any) -> "Drivers":
        """What `f` does with the drivers of a carry like `init`, at inputs like `x`."""
        if not layout.drivers:
            return cls(layout)
        leaves = pytree.tree_leaves(init)
        inputs, structure = pytree.tree_flatten(x)
        given = [x for x in (*leaves, *inputs) if isinstance(x, Tensor)]

        def of_drivers(*tensors):
            rest = iter(tensors)
            put = lambda x: next(rest) if isinstance(x, Tensor) else x
            carry = pytree.tree_unflatten(list(map(put, leaves)), layout.treedef)
            new, _ = f(carry, pytree.tree_unflatten(list(map(put, inputs)), structure))
            new = pytree.tree_leaves(new)
            return [new[i] for i in layout.drivers]

        unknown = cls(layout, tuple((layout.names[i], None) for i in layout.drivers))
        try:
            with torch.no_grad(), temporarily_clear_interpreter_stack():
                # Of the same kind, but no part of a transform under way.
                examples = [
                    torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in given
                ]
                module = make_fx(
                    of_drivers, tracing_mode="fake", _allow_non_fake_inputs=True
                )(*examples)
                names = [
                    layout.names[i] if i in layout.floats else None
                    for i, x in enumerate(leaves)
                    if x is not None
                ]
                taint = _Taint(module, names)
                with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                    taint.run(*(mode.from_tensor(x) for x in examples))
        except Exception:
            # Control flow by values, an operation that cannot be traced: whatever it
            # was, `f` itself will say if it is an error.
            return unknown
        outputs = taint.outputs()
        if len(outputs) != len(layout.drivers):
            return unknown
        found = tuple(
            (layout.names[i], name)
            for i, sources in zip(layout.drivers, outputs, strict=True)
            for name in sorted(sources)
        )
        return cls(layout, found) if found else cls(layout, (), taint.rest())

    def run(
        self, init: Any, xs: Any, length: int
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The drivers before and after each of the steps, `(T, B, ...)`."""
        drivers = self.layout.drivers
        if not drivers:
            return (), ()
        assert self.program is not None
        leaves = pytree.tree_leaves(init)
        tensors = [x for x in pytree.tree_leaves(xs) if isinstance(x, Tensor)]
        steps = [x.detach().unbind(0) for x in tensors]
        # Floats stay what they are: nothing that is left of the program reads them.
        carry = {i: x.detach() for i, x in enumerate(leaves) if x is not None}
        sequence = [[carry[i] for i in drivers]]
        with torch.no_grad():
            for t in range(length):
                new = self.program(*carry.values(), *(x[t] for x in steps))
                carry.update(zip(drivers, new, strict=True))
                sequence.append(list(new))
        every = [torch.stack(x) for x in zip(*sequence, strict=True)]
        return tuple(x[:-1] for x in every), tuple(x[1:] for x in every)


class _Taint(fx.Interpreter):
    """Follows the memory that holds what depends on floats, operation by operation.

    Memory and not tensors: views share it, and writing to one is seen by the others.
    """

    def __init__(self, module: fx.GraphModule, names: list[str | None]):
        super().__init__(module, garbage_collect_values=False)
        self.traced = module
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        self.names = dict(zip(inputs, names, strict=False))
        self.sources: dict[int, frozenset[str]] = {}
        self.dirty: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.op == "placeholder":
            name = self.names.get(n)
            if name is not None:
                self._mark(out, frozenset([name]))
                self.dirty.add(n)
        elif n.op not in ("get_attr", "output"):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            sources = self._of((args, kwargs))
            if sources:
                self.dirty.add(n)
                self._mark((out, list(_written(n.target, args, kwargs))), sources)
        return out

    def _of(self, tree: Any) -> frozenset[str]:
        found = (self.sources.get(key, frozenset()) for key in _memory(tree))
        return frozenset().union(*found)

    def _mark(self, tree: Any, sources: frozenset[str]) -> None:
        for key in _memory(tree):
            self.sources[key] = self.sources.get(key, frozenset()) | sources

    def _output_nodes(self) -> Any:
        (node,) = (n for n in self.traced.graph.nodes if n.op == "output")
        return node.args[0]

    def outputs(self) -> list[frozenset[str]]:
        """For each output the names of the floats on which it may depend."""
        nodes = self._output_nodes()
        return [
            self._of(self.env[n]) if isinstance(n, fx.Node) else frozenset()
            for n in nodes
        ]

    def rest(self) -> Callable[..., Any]:
        """The program without all that depends on floats, if no output does.

        Nothing that is left reads what is left out: all that an operation which
        depends on floats makes or writes to depends on them.
        """
        graph = self.traced.graph
        for node in reversed(list(graph.nodes)):
            if node in self.dirty and node.op != "placeholder":
                graph.erase_node(node)
        graph.eliminate_dead_code()
        self.traced.recompile()
        return self.traced.forward


def _memory(tree: Any) -> Iterator[int]:
    for x in pytree.tree_leaves(tree):
        if isinstance(x, Tensor):
            yield x.untyped_storage()._cdata


def _written(target: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """The arguments that an operation may write to."""
    if target is operator.getitem:
        return
    if not isinstance(target, torch._ops.OpOverload):
        # Something of a higher order.
        yield args, kwargs
        return
    schema = target._schema.arguments
    for place, argument in enumerate(schema):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[place] if place < len(args) else kwargs.get(argument.name)
