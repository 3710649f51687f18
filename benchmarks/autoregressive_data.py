"""Sequences for flows to be trained on, and noise for them to make sequences of."""

import numpy as np


def squashed_ar1(draw: np.random.Generator, samples: int, length: int) -> np.ndarray:
    """`tanh` of `u_t = 0.9 u_{t-1} + sqrt(0.19) e_t`, `(samples, length)`, float32."""
    noise = draw.standard_normal((samples, length))
    states = np.empty_like(noise)
    states[:, 0] = noise[:, 0]
    for t in range(1, length):
        states[:, t] = 0.9 * states[:, t - 1] + np.sqrt(1 - 0.9**2) * noise[:, t]
    return np.tanh(states).astype(np.float32)
