"""How fast a chain amplifies errors: its largest Lyapunov exponent."""

import torch
from torch import Tensor

from ._chain import Chain, chunk_size, chunks, jacobian, slices
from ._scan.algebra import compose


def lyapunov_exponent(
    problem: Chain, z: Tensor, prefix: Tensor, chunk: int | None = None
) -> Tensor:
    """`log |A_t ... A_1| / t` for the Jacobians of the first `t = prefix` steps.

    The largest Lyapunov exponent of each sample, `(B,)`, as far as `t` steps show it:
    an error grows by `exp` of it in each step. NaN if `prefix` is zero or a derivative
    is not finite, minus infinity if nothing is remembered from the beginning to the
    end. `|.|` is the largest entry. Carries no derivative. Steps that stand apart are
    left out.

    Products of neighbours are formed, then of neighbouring products, and so on:
    `O(log T)` stages, each of which is renormalised.
    """
    with torch.no_grad():
        step, lag = problem.at_all_times, problem.lag(z)
        dense = step.structure.num_axes > 1
        whole = _unit(step.structure.shape(problem.size), z)
        # One product for all times; those that came before are the first of a chunk.
        product = whole.expand(1, z.shape[1], *whole.shape), z.new_zeros(1, z.shape[1])
        chunk = chunk_size(chunk, z, problem.num_entries)
        count = torch.zeros_like(prefix)
        for begin, end in chunks(problem.length, chunk):
            xs = slices(problem.xs, begin, end)
            _, a = jacobian(step, lag[begin:end], xs)
            times = torch.arange(begin, end, device=z.device)
            inside = times[:, None] < prefix
            if problem.apart is not None:
                # Members of a `vmap` are samples, too.
                members = z.shape[1] // problem.apart.shape[1]
                inside = inside & ~problem.apart[begin:end].repeat(1, members)
            count = count + inside.sum(0)
            inside = inside.reshape(*a.shape[:2], *(1,) * whole.ndim)
            a = torch.where(inside, a, whole)
            matrices, logs = product
            logs = torch.cat([logs, logs.new_zeros(a.shape[:2])])
            product = _product(torch.cat([matrices, a]), logs, dense)
        return _normalised(*product)[1][0] / count.to(z.dtype)


def _product(matrices, logs, dense):
    """The product of all times, the last on the left, and what it was divided by."""
    while len(matrices) > 1:
        pairs = len(matrices) // 2 * 2
        # Whoever has no neighbour waits for the next stage.
        rest = matrices[pairs:], logs[pairs:]
        matrix = compose(matrices[1:pairs:2], matrices[:pairs:2], dense)
        log = logs[1:pairs:2] + logs[:pairs:2]
        matrix, log = _normalised(matrix, log)
        matrices, logs = torch.cat([matrix, rest[0]]), torch.cat([log, rest[1]])
    return matrices, logs


def _normalised(matrix, log):
    """Of size one, and the logarithm of what it was; zero stays zero, NaN NaN."""
    size = matrix.abs().flatten(2).amax(-1)
    divisor = torch.where(size == 0, 1, size).reshape(
        *size.shape, *(1,) * (matrix.ndim - 2)
    )
    return matrix / divisor, log + size.log()


def _unit(shape, z):
    """The identity, in the form of a structure of this shape."""
    if len(shape) == 1:
        return z.new_ones(shape)
    return torch.eye(shape[-1], dtype=z.dtype, device=z.device).expand(shape)
