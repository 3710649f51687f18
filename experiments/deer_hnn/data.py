"""Two bodies of mass 1 that attract each other, in a plane, with `G = 1`."""

import numpy as np
from scipy.integrate import solve_ivp


# Of both bodies: their positions, then their momenta, each in two dimensions.
SIZE = 8


def energy(states: np.ndarray) -> np.ndarray:
    """`H = |p1|^2 / 2 + |p2|^2 / 2 - 1 / |q1 - q2|` of states `(..., 8)`."""
    positions, momenta = states[..., :4], states[..., 4:]
    distance = np.linalg.norm(positions[..., :2] - positions[..., 2:], axis=-1)
    return (momenta**2).sum(-1) / 2 - 1 / distance


def trajectories(count: int, end: float, points: int, seed: int) -> np.ndarray:
    """States `(count, points + 1, 8)` at equal distances of time from 0 to `end`.

    The bodies start opposite each other, `.5` to `1.5` from the centre at rest between
    them, with 80 to 120 % of the momenta that make a circle. Solved by SciPy to 1e-10.
    """
    draw = np.random.default_rng(seed)
    times = np.linspace(0, end, points + 1)
    found = []
    for _ in range(count):
        radius, angle = draw.uniform(0.5, 1.5), draw.uniform(0, 2 * np.pi)
        # The force 1 / (2 r)^2 is what a circle with this speed takes.
        speed = draw.uniform(0.8, 1.2) * 0.5 * radius**-0.5
        outwards = np.array([np.cos(angle), np.sin(angle)])
        along = np.array([-np.sin(angle), np.cos(angle)])
        start = np.concatenate(
            [radius * outwards, -radius * outwards, speed * along, -speed * along]
        )
        solution = solve_ivp(
            *(_field, (0, end), start, "DOP853", times), rtol=1e-10, atol=1e-10
        )
        found.append(solution.y.T)
    return np.stack(found)


def _field(t, state):
    del t
    between = state[:2] - state[2:4]
    force = -between / np.linalg.norm(between) ** 3
    return np.concatenate([state[4:], force, -force])
