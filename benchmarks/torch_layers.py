"""Layers `z = tanh(z W + x)` for PyTorch, and what they must answer, by NumPy."""

import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer on `samples` states of `size` entries; `gain` is the norm of `W`."""

    samples: int
    size: int
    gain: float
    dtype: torch.dtype = torch.float32

    @functools.cached_property
    def _numbers(self):
        random = np.random.default_rng(0)
        basis, _ = np.linalg.qr(random.normal(size=(self.size, self.size)))
        weight = self.gain * basis
        x, cotangent = random.normal(size=(2, self.samples, self.size))
        return weight, 0.3 * x, cotangent

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """`W`, `x`, and the weights of the loss."""
        weight, x, cotangent = (
            torch.as_tensor(each, dtype=self.dtype) for each in self._numbers
        )
        return weight, x, cotangent

    @property
    def guess(self) -> Tensor:
        return torch.zeros(self.samples, self.size, dtype=self.dtype)

    @functools.cached_property
    def solution(self) -> np.ndarray:
        """The fixed points in float64, by Newton's method after plain steps."""
        weight, x, _ = self._numbers
        z = np.zeros_like(x)
        for _ in range(100):
            z = np.tanh(z @ weight + x)
        for _ in range(20):
            f = np.tanh(z @ weight + x)
            z = z + np.linalg.solve(self._system(z), (f - z)[..., None])[..., 0]
        return z

    def _system(self, z):
        weight, x, _ = self._numbers
        slope = 1 - np.tanh(z @ weight + x) ** 2
        return np.eye(self.size) - slope[..., None] * weight.T

    def residual(self, z: Tensor, tolerance: float) -> np.ndarray:
        """`(f(z) - z) / (tolerance (1 + |z|))` in float64, the same for everybody."""
        weight, x, _ = self._numbers
        y = z.detach().double().numpy()
        value = np.tanh(y @ weight + x)
        return (value - y) / (tolerance * (1 + abs(y)))

    @functools.cached_property
    def gradient(self) -> dict[str, np.ndarray]:
        """Of `sum(cotangent * z)` with respect to `W` and `x`."""
        weight, x, cotangent = self._numbers
        z = self.solution
        slope = 1 - np.tanh(z @ weight + x) ** 2
        system = np.swapaxes(self._system(z), 1, 2)
        u = np.linalg.solve(system, cotangent[..., None])[..., 0] * slope
        return {"weight": z.T @ u, "x": u}

    def second(self, step: float = 1e-4) -> dict[str, np.ndarray]:
        """How the gradient changes along `cotangent` of `x`, by differences of it."""
        weight, x, cotangent = self._numbers

        def at(shift):
            other = Layer(self.samples, self.size, self.gain, self.dtype)
            numbers = (weight, x + shift * step * cotangent, cotangent)
            other.__dict__["_numbers"] = numbers
            return other.gradient

        weights = {-2: 1, -1: -8, 1: 8, 2: -1}
        values = {shift: at(shift) for shift in weights}
        return {
            name: sum(w * values[k][name] for k, w in weights.items()) / (12 * step)
            for name in ("weight", "x")
        }
