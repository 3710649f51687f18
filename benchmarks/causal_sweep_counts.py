"""How many evaluations each sweep takes for causal problems: no times, only counts.

`python benchmarks/causal_sweep_counts.py` prints the table of docs/how-to-choose.md, in
float64, for one sample from zeros: two layers with masks over 256 entries, the weights
multiplied by 1 and 4; a recurrent network over 512 states of 8 numbers; the ODE
`z' = tanh(A z) - z` over 256 states of 4 numbers, in Picard's form; a sampler of
diffusion for a mixture of Gaussians, 100 steps in 8 dimensions, unrolled. Every answer
is compared with the sequential program, bit for bit in exact mode; one that is not
right is marked.
"""

import math

import numpy as np
import torch

from parafix.core.torch import Jacobi
from parafix.feedforward.torch import (
    GSJacobi,
    JacobiGS,
    solve_causal,
    TriangularAnderson,
)


SOLVERS = {
    "jacobi": Jacobi,
    "jacobi-gs": JacobiGS,
    "gs-jacobi": GSJacobi,
    "gs-jacobi, window 64": lambda rtol, atol: GSJacobi(rtol, atol, 64),
    "triangular-anderson": TriangularAnderson,
}
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return torch.as_tensor(RANDOM.normal(size=shape))


def before(z):
    return torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)


def masked(scale, count=256, hidden=512):
    degree = torch.arange(hidden) % (count - 1)
    index = torch.arange(count)
    w = scale * normal(hidden, count) / math.sqrt(count)
    w = torch.where(index <= degree[:, None], w, 0)
    v = scale * normal(count, hidden) / math.sqrt(hidden)
    v = torch.where(degree < index[:, None], v, 0)
    noise = normal(1, count)
    return lambda z: torch.relu(z @ w.T) @ v.T + noise, torch.zeros_like(noise)


def recurrent(count=512, size=8):
    a, noise = normal(size, size) / math.sqrt(size), normal(1, count, size)
    return lambda z: torch.tanh(before(z) @ a.T) + noise, torch.zeros_like(noise)


def picard(end=10.0, count=256, size=4):
    a, init = normal(size, size) / math.sqrt(size), normal(1, 1, size)

    def f(z):
        slopes = (torch.tanh(z @ a.T) - z).cumsum(1)
        return init + end / count * before(slopes)

    return f, torch.zeros(1, count, size, dtype=torch.float64)


def diffusion(count=100, size=8, components=3):
    means, noise = 2 * normal(components, size), normal(1, 1, size)
    # From almost pure noise to almost none, by DDIM: x / signal is a sum.
    angle = torch.linspace(0.49 * math.pi, 0.01, count + 1, dtype=torch.float64)
    signal, level = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
    weight = (level / signal).diff(dim=0)

    def f(z):
        x = torch.cat([noise, z[:, :-1]], 1)[:, :, None]
        variance = 0.1 * signal[:-1] ** 2 + level[:-1] ** 2
        away = x - signal[:-1, :, None] * means
        parts = torch.softmax(-(away**2).sum(-1) / (2 * variance), -1)
        predicted = (parts[..., None] * away).sum(2) * level[:-1] / variance
        return signal[1:] * (noise / signal[0] + (weight * predicted).cumsum(1))

    return f, torch.zeros(1, count, size, dtype=torch.float64)


def main() -> None:
    torch.set_num_threads(1)
    problems = {
        "layers": masked(1),
        "layers x 4": masked(4),
        "recurrent": recurrent(),
        "Picard": picard(),
        "diffusion": diffusion(),
    }
    print(f"torch {torch.__version__}", *problems, sep="  ")
    for name, make in SOLVERS.items():
        for mode, tolerance in (("exact", 1e-12), ("tolerance", 1e-6)):
            counts = []
            for f, start in problems.values():
                expected = solve_causal(f, start, solver="sequential").value
                solver = make(tolerance, tolerance)
                found = solve_causal(f, start, solver=solver, mode=mode)
                right = torch.equal(found.value, expected)
                if mode == "tolerance":
                    right = bool((found.value - expected).abs().max() < 1e-4)
                count = int(found.stats["num_evals"][0])
                counts.append(f"{count}" if right else f"{count} (wrong)")
            print(f"{name}, {mode}", *counts, sep="  ")


if __name__ == "__main__":
    main()
