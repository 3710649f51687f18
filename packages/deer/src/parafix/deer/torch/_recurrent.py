"""What the recurrent layers have in common: their plumbing, and who runs them."""

import abc
import sys
import warnings
from typing import Any, TYPE_CHECKING

import torch
from torch import nn, Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from parafix.core.torch import AbstractSweep, as_sweep, checked_count, Sequential

from ._auto_layer import choose_layer
from ._cells import AbstractCell, Weights
from ._layer import autocasts, LayerInfo, solve_layer
from ._sequences import Sequences


if TYPE_CHECKING:
    # What it is mixed with.
    _Base = nn.RNNBase
else:
    _Base = abc.ABC


class AbstractRecurrent(_Base):
    """What a layer of `torch.nn` needs to be solved for all times at once.

    Mixed in before the class of `torch.nn`, it takes its place in `forward` alone:
    parameters, checkpoints, `flatten_parameters` and the rest are those of `torch.nn`.
    """

    info: tuple[LayerInfo, ...]

    def __init__(
        self,
        *args: Any,
        solver: str | AbstractSweep | Sequential = "auto",
        rtol: float | None = None,
        atol: float | None = None,
        max_steps: int | None = None,
        window: int | None = None,
        throw: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        # A wrong name or a doubled tolerance is an error here, and not in training.
        as_sweep("deer" if _is_auto(solver) else solver, rtol, atol)
        self.solver = solver
        self.rtol, self.atol = rtol, atol
        self.max_steps = checked_count("max_steps", max_steps)
        self.window = checked_count("window", window)
        self.throw = throw
        self.info = ()
        self._has_warned = False
        # Of "auto": for how many calls it rests, and did at the last failure.
        self._rest = self._pause = 0

    @abc.abstractmethod
    def _cell(self, weights: Weights) -> AbstractCell:
        """The cell with these weights."""

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        # A solve stops by what it finds, which `torch.compile` cannot follow. It takes
        # up functions inside of one that it has left alone, so asking whether it is
        # compiling would not do; whoever compiles has loaded this.
        if "torch._dynamo" in sys.modules:
            run: Any = torch.compiler.disable(self._run)
            return run(input, hx)
        return self._run(input, hx)

    def _run(self, input, hx):
        if not self._serves(input, hx):
            return self._run_kernel(input, hx, "there is nothing to solve for")
        sequences = Sequences.of(input, self.batch_first)
        if _is_auto(self.solver):
            return self._run_faster(sequences, input, hx)
        solver = as_sweep(self.solver, self.rtol, self.atol)
        if isinstance(solver, Sequential):
            return self._run_kernel(input, hx)
        out, self.info = self._solve(
            sequences, input, hx, self.solver, self.max_steps, self.throw
        )
        failed = _first_failure(self.info)
        if failed is not None and not self._has_warned:
            self._has_warned = True
            self._warn(failed)
        return out

    def _warn(self, failed):
        # Where the module was called, if it was and nobody has called `forward`.
        frame, level = sys._getframe(), 1
        while frame is not None and frame.f_code.co_name != "_wrapped_call_impl":
            frame, level = frame.f_back, level + 1
        warnings.warn(
            f"{type(self).__name__}(solver={self.solver!r}), {_place(failed)}: "
            f"{failed.message()} The codes of every call are in `info`; this warning "
            "comes once for each module.",
            stacklevel=2 if frame is None else level + 1,
        )

    def extra_repr(self) -> str:
        given = {
            "solver": (self.solver, None),
            "rtol": (self.rtol, None),
            "atol": (self.atol, None),
            "max_steps": (self.max_steps, None),
            "window": (self.window, None),
            "throw": (self.throw, False),
        }
        words = [f"{key}={x!r}" for key, (x, usual) in given.items() if x != usual]
        return ", ".join([super().extra_repr(), *words])

    def _run_kernel(self, input, hx, reason=""):
        self.info = tuple(
            LayerInfo(layer, reverse, "sequential", reason)
            for layer, reverse in self._places()
        )
        return super().forward(input, hx)

    def _run_faster(self, sequences, input, hx):
        """What `choose_layer` says, and the kernel where a solve has failed."""
        data = _data(input)
        choice = choose_layer(
            self.mode,
            sequences.length,
            sequences.batch,
            sum(self._sizes.values()),
            gradient=self._wants_gradient(data),
            platform=data.device.type,
            fused=self._is_fused(data),
        )
        if choice.solver == "sequential":
            return self._run_kernel(input, hx, choice.reason)
        if self._rest:
            self._rest -= 1
            return self._run_kernel(
                input, hx, "a solve has failed; the next is tried in a later call"
            )
        limits = (choice.max_steps, self.max_steps)
        max_steps = min(limit for limit in limits if limit is not None)
        # The kernel has to draw what the solve has drawn.
        draws = self.training and self.dropout > 0 and self.num_layers > 1
        random = _random_state(data.device) if draws else None
        out, info = self._solve(
            sequences, input, hx, choice.solver, max_steps, False, choice.reason
        )
        failed = _first_failure(info)
        if failed is None:
            self.info, self._pause = info, 0
            return out
        # Twice as many calls without a solve as the last time: what is lost by solves
        # that fail is little beside all calls.
        self._rest = self._pause = min(2 * self._pause + 1, 1023)
        if random is not None:
            _set_random_state(data.device, random)
        reason = f"{choice.solver} failed, {_place(failed)}: {failed.message()}"
        return self._run_kernel(input, hx, reason)

    def _solve(self, sequences, input, hx, solver, max_steps, throw, reason=""):
        """The outputs as `forward` returns them, and the infos."""
        options = {
            "solver": solver,
            "rtol": self.rtol,
            "atol": self.atol,
            "max_steps": max_steps,
            "window": self.window,
            "throw": throw,
        }
        kept = _weight(self).dtype
        # Half precision would stop short of any tolerance.
        working = torch.float64 if kept == torch.float64 else torch.float32
        outputs = sequences.enter(input).to(working)
        starts = self._starts(sequences, hx, working)
        present = sequences.present()
        parts, ends, info = [], [], []
        for start, (layer, reverse), tensors in zip(
            starts, self._places(), self.all_weights, strict=True
        ):
            weights = Weights.of(tensors, self.bias).to(working)
            cell = self._cell(weights)
            states, end, solution = solve_layer(
                cell, outputs, start, sequences, present, reverse, options
            )
            size, *_ = cell.sizes.values()
            parts.append(sequences.gather(states[..., :size]))
            ends.append(end.split([*cell.sizes.values()], -1))
            info.append(LayerInfo(layer, reverse, solver, reason, solution))
            if reverse == self.bidirectional:
                outputs = torch.cat(parts, -1) if reverse else parts[0]
                parts = []
                if self.dropout and layer < self.num_layers - 1:
                    outputs = F.dropout(outputs, self.dropout, self.training)
        ends = [
            sequences.leave_state(torch.stack(x).to(kept))
            for x in zip(*ends, strict=True)
        ]
        last = ends[0] if len(ends) == 1 else tuple(ends)
        return (sequences.leave(outputs.to(kept)), last), tuple(info)

    def _starts(self, sequences, hx, dtype):
        """The initial states of all layers and directions: `(B, n)` each."""
        if hx is None:
            sizes = self._sizes.values()
            shape = (len(self.all_weights), sequences.batch, sum(sizes))
            return torch.zeros(shape, dtype=dtype, device=_weight(self).device)
        parts = hx if isinstance(hx, tuple | list) else (hx,)
        return torch.cat([sequences.enter_state(x).to(dtype) for x in parts], -1)

    def _places(self):
        """Layer and direction of each entry of `all_weights`."""
        directions = (False, True) if self.bidirectional else (False,)
        return [(k, reverse) for k in range(self.num_layers) for reverse in directions]

    def _serves(self, input, hx):
        """Whether there is something to solve for, and everything fits. Otherwise the
        kernel returns what it returns for nothing, or says in its words what is wrong.
        """
        data = _data(input)
        packed = isinstance(input, PackedSequence)
        if data.numel() == 0 or not (packed or data.ndim in (2, 3)):
            return False
        single = not packed and data.ndim == 2
        batch_sizes = input.batch_sizes if packed else None
        states = hx if isinstance(hx, tuple) else () if hx is None else (hx,)
        if hx is not None and isinstance(hx, tuple) != (self.mode == "LSTM"):
            return False
        if any(x.ndim != (2 if single else 3) for x in states):
            return False
        if not autocasts(data.device) and any(x.dtype != data.dtype for x in states):
            return False
        if single:
            data = data.unsqueeze(0 if self.batch_first else 1)
            states = tuple(x.unsqueeze(1) for x in states)
        hidden: Any = states if isinstance(hx, tuple) else (*states, None)[0]
        try:
            if hidden is None:
                self.check_input(data, batch_sizes)
            else:
                self.check_forward_args(data, hidden, batch_sizes)
        except (RuntimeError, ValueError):
            return False
        return True

    @property
    def _sizes(self):
        """Those of a state: see `AbstractCell.sizes`."""
        return self._cell(Weights.of(self.all_weights[0], self.bias)).sizes

    def _wants_gradient(self, data):
        tensors = (data, *self.parameters())
        return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)

    def _is_fused(self, data):
        """Whether oneDNN runs the whole sequence."""
        return (
            self.mode == "LSTM"
            and not self.proj_size
            and data.device.type == "cpu"
            and data.dtype in (torch.float32, torch.bfloat16)
            and torch.backends.mkldnn.is_available()
            and bool(torch.backends.mkldnn.enabled)
        )


def _is_auto(solver):
    return isinstance(solver, str) and solver == "auto"


def _data(given):
    return given.data if isinstance(given, PackedSequence) else given


def _weight(module):
    return module.all_weights[0][0]


def _first_failure(info):
    return next((item for item in info if not item.successful), None)


def _place(item):
    return f"layer {item.layer}" + (", backwards" if item.reverse else "")


def _random_state(device):
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)


def _set_random_state(device, state):
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
