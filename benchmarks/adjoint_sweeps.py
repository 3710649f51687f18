"""How many sweeps the iterated gradient of a chain takes: no times, only counts.

`python benchmarks/adjoint_sweeps.py` prints the table of
docs/adr/0009-iterated-adjoint.md: a random cotangent, carried back over 1024 steps in
float32, to a residual of 8 times rounding. The diagonals are none, that of the Jacobian
estimated from one vector of random signs, what `ChainAdjoint` takes, and the true one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from parafix.core.jax import affine_scan
from parafix.core.jax._iterated import _diagonal


LENGTH, INPUTS = 1024, 16


def gru(size, scale=1.0, memory=None):
    """At PyTorch's initialisation; units remember up to `memory` steps, if given."""
    keys = jax.random.split(jax.random.key(size), 4)
    shapes = (3 * size, size), (3 * size, INPUTS), (3 * size,)
    bound = scale * size**-0.5
    w, u, b = (
        jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        for key, shape in zip(keys[:3], shapes, strict=True)
    )
    if memory is not None:
        steps = jax.random.uniform(keys[3], (size,), minval=1.0, maxval=memory)
        b = b.at[size : 2 * size].add(jnp.log(steps))

    def step(h, x):
        reset_x, update_x, new_x = jnp.split(u @ x + b, 3)
        reset_h, update_h, new_h = jnp.split(w @ h, 3)
        update = jax.nn.sigmoid(update_x + update_h)
        new = jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * new_h)
        return new + update * (h - new)

    return step


def tanh(size):
    keys = jax.random.split(jax.random.key(size))
    w = 0.9 * jnp.linalg.qr(jax.random.normal(keys[0], (size, size)))[0]
    u = jax.random.normal(keys[1], (size, INPUTS)) / 4
    return lambda h, x: jnp.tanh(w @ h + u @ x)


CELLS = {
    "GRU": gru,
    "GRU, weights x 3": lambda size: gru(size, 3.0),
    "GRU, memory of up to 300 steps": lambda size: gru(size, memory=300.0),
    "tanh, 0.9 times orthogonal": tanh,
}


def counts(step, size):
    xs = jax.random.normal(jax.random.key(1), (LENGTH, INPUTS))
    states = lax.scan(lambda h, x: (step(h, x),) * 2, jnp.zeros(size), xs)[1]
    lag = jnp.concatenate([jnp.zeros((1, size)), states[:-1]])
    f = jax.vmap(step)
    _, product = jax.linearize(lambda lag: f(lag, xs), lag)
    pull = jax.linear_transpose(product, lag)
    g = jax.random.normal(jax.random.key(2), (LENGTH, size))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size).astype(np.float32)
    signs = jnp.broadcast_to(signs, lag.shape)
    blocks = jax.vmap(jax.jacfwd(step))(lag, xs)
    diagonals = {
        "none": jnp.zeros_like(lag),
        "one probe": signs * product(signs),
        "certain": _diagonal(product, lag, None),
        "true": jnp.diagonal(blocks, axis1=1, axis2=2),
    }

    def later(x):
        return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])

    @jax.jit
    def count(diagonal):
        solve = lambda r: affine_scan(later(diagonal), r, reverse=True)

        def sweep(carry):
            x, _, steps = carry
            r = g + later(pull(x)[0]) - x
            small = jnp.abs(r).max() <= 8 * jnp.finfo(x.dtype).eps * jnp.abs(x).max()
            return x + solve(r), small, steps + 1

        going = lambda carry: ~carry[1] & (carry[2] < LENGTH)
        x, small, steps = lax.while_loop(going, sweep, (solve(g), False, 0))
        return small & jnp.isfinite(x).all(), steps

    for diagonal in diagonals.values():
        small, steps = count(diagonal)
        yield str(steps) if small else "-"


def main() -> None:
    for name, cell in CELLS.items():
        for size in (64, 256):
            print("|", " | ".join((name, str(size), *counts(cell(size), size))), "|")


if __name__ == "__main__":
    main()
