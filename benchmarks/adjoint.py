"""What the gradient of a chain costs: with Jacobians, iterated, and by the loop.

`python benchmarks/adjoint.py jax 256 1 iterated` prints one row of the table of
docs/adr/0009-iterated-adjoint.md: a gated recurrent unit with 256 units at PyTorch's
initialisation over 2048 steps, one sample, float32, one thread. `loop` is value and
gradient of the framework's own; the others are the adjoint alone, as after any solve,
in JAX with a loop for the states. Processor time, the least of some runs. The memory is
what the compiled program asks for in JAX, and what the process has grown by in PyTorch,
so there is one process for each row. The last number is the same in all rows of a size.
"""

import argparse
import functools as ft
import resource
import time
import types

import numpy as np


LENGTH, INPUTS = 2048, 16


def gates(np, h, gx, gh):
    reset_x, update_x, new_x = np.split(gx, 3, -1)
    reset_h, update_h, new_h = np.split(gh, 3, -1)
    reset = 1 / (1 + np.exp(-reset_x - reset_h))
    update = 1 / (1 + np.exp(-update_x - update_h))
    new = np.tanh(new_x + reset * new_h)
    return new + update * (h - new)


def data(size, samples):
    random = np.random.default_rng(0)
    uniform = lambda *shape: random.uniform(-(size**-0.5), size**-0.5, shape)
    weights = uniform(3 * size, size), uniform(3 * size, INPUTS), uniform(3 * size)
    xs = random.normal(size=(LENGTH, samples, INPUTS))
    g = random.normal(size=(LENGTH, samples, size))
    return [x.astype(np.float32) for x in (*weights, xs, g)]


def in_jax(size, samples, way):
    import jax
    import jax.numpy as jnp
    from jax import lax

    from parafix.core.jax import Chain, ChainAdjoint
    from parafix.core.jax._chain import chunk_size
    from parafix.core.jax._structure import closed

    *weights, xs, g = data(size, samples)
    chunk = chunk_size(None, LENGTH, size**2 if way == "dense" else 0)
    adjoint = ChainAdjoint(iterate=way == "iterated", chunk=chunk)

    def by_loop(inputs):
        chain = inputs[4]["problem"]
        step = lambda h, x: (chain.step(h, x),) * 2
        return lax.scan(step, chain.init, chain.xs)[1], ()

    def states(weights, xs):
        w, u, b = weights
        step = lambda h, x: gates(jnp, h, u @ x + b, w @ h)
        init = jnp.zeros(size)
        chain = Chain(closed(step, init, xs[0]), init, xs, LENGTH)
        options = {"problem": chain, "throw": False}
        inputs = (*(None,) * 4, options, None, None, None, frozenset())
        if way == "loop":
            return by_loop(inputs)[0]
        return adjoint.apply(by_loop, None, inputs, frozenset())[0]

    def loss(weights, xs, g):
        return jnp.sum(g * jax.vmap(ft.partial(states, weights), 1, 1)(xs))

    program = jax.jit(jax.value_and_grad(loss)).lower(weights, xs, g).compile()
    run = lambda: jax.block_until_ready(program(weights, xs, g))[1][0]
    return run, lambda: program.memory_analysis().temp_size_in_bytes


def in_torch(size, samples, way):
    import torch

    from parafix.core.torch import Chain, ChainAdjoint
    from parafix.core.torch._capture import Autocast
    from parafix.core.torch._chain_adjoint import _Task
    from parafix.core.torch._chain_gradient import gradient
    from parafix.core.torch._chain_map import captured_map

    torch.set_num_threads(1)
    w, u, b, xs, g = map(torch.tensor, data(size, samples))
    for x in (w, u, b):
        x.requires_grad_()
    functions = types.SimpleNamespace(
        exp=torch.exp, tanh=torch.tanh, split=lambda x, n, dim: x.chunk(n, dim)
    )
    step = lambda h, x: gates(functions, h, x @ u.T + b, h @ w.T)
    init = torch.zeros(samples, size)

    def states():
        h, z = init, []
        for x in xs:
            h = step(h, x)
            z.append(h)
        return torch.stack(z)

    if way == "loop":
        run = lambda: torch.autograd.grad((g * states()).sum(), (w, u, b))[0]
    else:
        with torch.no_grad():
            lag = torch.cat([init[None], states()[:-1]])
        chain = Chain(step, init, xs, LENGTH, broadcasts=True)
        map_ = captured_map(chain, Autocast.now(init.device), torch.finfo().eps)
        problem = types.SimpleNamespace(chain=chain, window=LENGTH, throw=False)
        task = _Task(problem, ChainAdjoint(iterate=way == "iterated"), map_)  # pyright: ignore
        tensors = [xs, *map_.params]

        def run():
            with torch.no_grad():
                found = gradient(task, g, lag, tensors, [True] * len(tensors))[1]
            return next(x for x in found if x is not None and x.shape == w.shape)

    now = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = now()
    return run, lambda: now() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=("jax", "torch"))
    parser.add_argument("size", type=int)
    parser.add_argument("samples", type=int)
    parser.add_argument("way", choices=("dense", "iterated", "loop"))
    given = parser.parse_args()
    make = in_jax if given.backend == "jax" else in_torch
    run, memory = make(given.size, given.samples, given.way)
    seconds, begin = [], time.monotonic()
    while not seconds or (time.monotonic() - begin < 6 and len(seconds) < 9):
        start = time.process_time()
        found = run()
        seconds.append(time.process_time() - start)
    norm = float(np.linalg.norm(np.asarray(found, np.float64)))
    row = (*vars(given).values(), f"{1e3 * min(seconds):.0f} ms")
    print("|", *row, f"{memory() / 2**20:.0f} MiB", f"{norm:.6g}", sep=" | ")


if __name__ == "__main__":
    main()
