import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from parafix.core.torch import default_tolerance, RESULTS

from .._demo_network import Network
from .._demo_results import Comparison, Sweep, Sweeps, Timing
from ._demo_cells import cell_of, initial, layer_of, prediction_error
from ._scan import scan


# Far more than a solve takes that converges, and few enough to wait for.
_MOST_SWEEPS = 100
_ON_CPU = (
    "That is a CPU. PyTorch's kernel takes some microseconds for each step, however "
    "small, and several times as many with a backward pass; a sweep takes what its "
    "arithmetic takes. So here DEER pays where states and batches are small, and for "
    "gradients first."
)
_FUSED = (
    "That is a CPU, on which PyTorch runs an LSTM of this dtype over the whole "
    "sequence in one call of oneDNN. That kernel is hard to beat there."
)

Advance = Callable[[str], None]


@contextlib.contextmanager
def computation(
    network: Network,
    inputs: np.ndarray,
    *,
    dtype: str,
    tolerance: float | None,
    window: int | None,
    repeats: int,
) -> Iterator["Computation"]:
    """The demo's computation, in a context in which the comparison is fair."""
    threads = torch.get_num_threads()
    # PyTorch's annotations do not know what is set here.
    kernel: Any = torch.backends.cudnn.rnn
    precision = kernel.fp32_precision
    # With more, short operations wait for threads to wake up.
    torch.set_num_threads(1)
    # Otherwise a GPU leaves three digits of what the kernel computes in float32.
    kernel.fp32_precision = "ieee"
    try:
        with warnings.catch_warnings():
            # The demo prints a failure, and what can be said of it, by itself.
            warnings.filterwarnings("ignore", r"\w+\(solver=")
            yield Computation(network, inputs, dtype, tolerance, window, repeats)
    finally:
        kernel.fp32_precision = precision
        torch.set_num_threads(threads)


class Computation:
    """A network over a batch of sequences, one step after the other and by DEER."""

    # What is waited for before the first timed run: first runs.
    preparations = 2

    def __init__(self, network, inputs, dtype, tolerance, window, repeats):
        self.network = network
        kind = getattr(torch, dtype)
        self.tolerance = default_tolerance(kind) if tolerance is None else tolerance
        self.window = window
        self.repeats = repeats
        self.most_sweeps = _MOST_SWEEPS
        self.eps = torch.finfo(kind).eps
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.platform = device.type
        name = "cpu" if self.platform == "cpu" else torch.cuda.get_device_name(device)
        self.where = f"{name}, torch {torch.__version__}, both on one thread"
        self._options = {"dtype": kind, "device": device}
        # As the layers of PyTorch have it: (T, B, d).
        xs = torch.from_numpy(inputs).transpose(0, 1)
        self._xs = xs.to(**self._options).contiguous()
        self._kernel = layer_of(network, solver="sequential", **self._options)
        self._layer = self._solver("deer")
        self._readout, self._offset = (
            torch.from_numpy(network.weights[key]).to(**self._options).requires_grad_()
            for key in ("readout", "offset")
        )
        fused = self._kernel._is_fused(self._xs)
        self.remark = ""
        if self.platform == "cpu":
            self.remark = _FUSED if fused else _ON_CPU
        title = type(self._layer).__name__
        self.baseline = f"torch.nn.{title}"
        calls = "for the whole sequence" if fused else "a loop over the steps"
        self.sequential = f"torch.nn.{title}, the kernel of PyTorch: {calls}"
        self.parallel = f'parafix.deer.torch.{title}(solver="deer")'
        self._truth = None

    def choices(self) -> list[tuple[str, str, str]]:
        """What `solver="auto"` takes, and why: `(for what, the solver, the reason)`."""
        choices = []
        for what, gradient in (("forward", False), ("with a gradient", True)):
            layer = self._solver("auto")
            with torch.set_grad_enabled(gradient):
                layer(self._xs)
            choices.append((what, str(layer.info[0].solver), layer.info[0].reason))
        return choices

    def forward(self, advance: Advance) -> Comparison:
        """All outputs, one step after the other and by DEER."""

        @torch.no_grad()
        def run(layer):
            return layer(self._xs)[0]

        return self._compare(run, advance, self._outputs)

    def gradient(self, advance: Advance) -> Comparison:
        """The loss and its gradient in the weights, likewise."""

        def run(layer):
            samples = self._xs[..., : len(self._offset)]
            weights = [x for x in layer.parameters() if x.requires_grad]
            weights += [self._readout, self._offset]
            states, _ = layer(self._xs)
            loss = prediction_error(self._readout, self._offset, states, samples)
            return loss.detach(), torch.autograd.grad(loss, weights)

        return self._compare(run, advance, self._gradients)

    @torch.no_grad()
    def sweeps(self, count: int, advance: Advance) -> Sweeps:
        """The states after each sweep over the whole length, up to convergence.

        At most `count` sweeps. A solve of one sweep that starts at the last iterate
        does what the next sweep of a longer solve does.
        """
        truth = self._states()
        length, batch = self._xs.shape[:2]
        step = cell_of(self.network, **self._options)
        init = initial(self.network, self._xs, batch)
        guess = pytree.tree_map(lambda x: x.expand(length, *x.shape), init)
        allowed = self.tolerance * (1 + np.abs(truth)) + 4 * self.eps
        rows, errors = [], []
        certified, solution = 0, None
        for number in range(count + 1):
            advance(f"sweep {number}")
            if number > 0:
                _, solution = scan(
                    step,
                    init,
                    self._xs,
                    solver="deer",
                    guess=guess,
                    rtol=self.tolerance,
                    atol=self.tolerance,
                    max_steps=1,
                    throw=False,
                    return_solution=True,
                )
                guess = solution.value
                certified = int(solution.stats["converged_prefix"].min())
            error = np.abs(_together(guess) - truth)
            within = (error <= allowed).all(-1)
            error = error.max(-1)
            rows.append(
                Sweep(
                    certified,
                    _prefix(within),
                    float(within.mean()),
                    float(np.median(error)),
                    float(error.max()),
                )
            )
            errors.append(error[:, 0])
            if solution is not None and not _failure(solution):
                break
        return Sweeps(rows, np.stack(errors), float(np.abs(truth).max()))

    def _solver(self, solver):
        return layer_of(
            self.network,
            solver=solver,
            rtol=self.tolerance,
            atol=self.tolerance,
            max_steps=min(self.most_sweeps, len(self._xs)),
            window=self.window,
            **self._options,
        )

    @torch.no_grad()
    def _states(self) -> np.ndarray:
        """All that is carried, `(T, B, state)`, one step after the other."""
        if self._truth is None:
            if self.network.cell == "lstm":
                # The kernel keeps the cells of the LSTM to itself.
                step = cell_of(self.network, **self._options)
                carry, carries = initial(self.network, self._xs, self._xs.shape[1]), []
                for x in self._xs:
                    carry, _ = step(carry, x)
                    carries.append(torch.cat(carry, -1))
                self._truth = _together(torch.stack(carries))
            else:
                self._truth = _together(self._kernel(self._xs)[0])
        return self._truth

    def _compare(self, run, advance, judge):
        """Runs and times both; `judge` says how far apart the results are."""
        layers = {"sequential": self._kernel, "DEER": self._layer}
        results, runs = [], ([], [])
        for name, layer in layers.items():
            advance(f"first run of {name}")
            results.append(run(layer))
        (info,) = self._layer.info
        # In turns, so that whatever else the machine does slows both.
        for number in range(self.repeats):
            advance(f"run {number + 1}")
            for layer, seconds in zip(layers.values(), runs, strict=True):
                self._wait()
                start = time.perf_counter()
                run(layer)
                # Calls return before their results are there.
                self._wait()
                seconds.append(time.perf_counter() - start)
        deviation, allowed, outputs = judge(*results, info)
        steps = info.stats["num_steps"]
        return Comparison(
            Timing(None, runs[0]),
            Timing(None, runs[1]),
            (int(steps.min()), int(steps.max())),
            # Of several, NaN is the largest.
            float(info.stats["residual"].max()),
            int(info.stats["converged_prefix"].min()),
            deviation,
            allowed,
            outputs,
            self.baseline,
            _failure(info),
        )

    def _wait(self):
        if self.platform == "cuda":
            torch.cuda.synchronize()

    def _outputs(self, expected, ys, info):
        scale = float(np.abs(self._states()).max())
        # What the tolerance leaves open, and what another order of rounding does.
        rounding = float(info.stats["error_estimate"].max())
        allowed = self.tolerance * (1 + scale) + 10 * (rounding + self.eps) * scale
        deviation = float((ys.double() - expected.double()).abs().max())
        return deviation, allowed, (float(expected.min()), float(expected.max()))

    def _gradients(self, sequential, deer, info):
        del info
        (loss, expected), (value, gradient) = sequential, deer
        # The state enters with its sensitivity, and every entry is a sum over all
        # times, in which rounding adds up.
        allowed = 10 * self.tolerance + self.eps**0.5
        largest = max(_largest(g) for g in expected)
        deviations = [_relative(value, loss, 0.0)]
        for found, g in zip(gradient, expected, strict=True):
            deviations.append(_relative(found, g, self.eps * largest))
        entries = [float(e) for g in expected for e in (g.min(), g.max())]
        # Of several, NaN is the largest.
        deviation = float(np.max(deviations))
        return deviation, allowed, (min(entries), max(entries))


def _together(carries: Any) -> np.ndarray:
    leaves = [leaf.double().cpu().numpy() for leaf in pytree.tree_leaves(carries)]
    return np.concatenate(leaves, -1)


def _prefix(within):
    """How many times from the start are right, in the sequence with the fewest."""
    first = np.where(within.all(0), within.shape[0], np.argmin(within, 0))
    return int(first.min())


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _relative(x, expected, floor):
    """Largest deviation beside the largest entry; NaN and infinity stay."""
    deviation = _largest(x - expected)
    scale = max(_largest(expected), floor)
    return deviation if scale == 0 else deviation / scale


def _failure(solution: Any) -> str:
    """The sentence of the first sequence that failed, or nothing."""
    failed = solution.result != RESULTS.successful
    if not failed.any():
        return ""
    one = int(failed.nonzero()[0])
    return f"sequence {one} (counted from 0): {solution.message(one)}"
