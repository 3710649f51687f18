from typing import Any

import equinox as eqx
import jax.numpy as jnp

from parafix.core.jax import AbstractDamping


class AdaptiveDamping(AbstractDamping):
    """`(1 - k) A_t`, with `k` above zero only after the residual has grown.

    `1 - k` is one at first. It is halved (`factor`) when the sum of `|f(z) - z|` over
    all times is larger than it was one sweep earlier, or not finite, and doubled, up to
    one, when it is not. So an easy solve is that of the undamped solver, sweep by
    sweep, and a hard one turns towards Jacobi's until it makes progress.

    ??? cite "Reference"

        The damped Jacobian is the "scale-ELK" of Gonzalez, Warrington, Smith and
        Linderman, "Towards scalable and stable parallelization of nonlinear RNNs",
        NeurIPS 2024, with a fixed `k`.
    """

    factor: float = 0.5

    def __check_init__(self):
        if not 0 < self.factor < 1:
            raise ValueError(f"`factor` must be between 0 and 1, got {self.factor}.")

    def init(self, z):
        return jnp.ones((), z.dtype), jnp.full((), jnp.inf, z.dtype)

    def start(self, a):
        del a

    def damp(self, a, times, memory, carry):
        del times
        kept, _ = memory
        return kept * a, carry

    def update(self, memory, residual):
        kept, last = memory
        # False for NaN, and from infinity to infinity.
        better = residual <= last
        better = better & jnp.isfinite(residual)
        new = jnp.where(better, jnp.minimum(kept / self.factor, 1), kept * self.factor)
        return new, jnp.where(jnp.isfinite(residual), residual, jnp.inf)


AdaptiveDamping.__init__.__doc__ = """**Arguments:**

- `factor`: what `1 - k` is multiplied by when the residual has grown, and divided by
    when it has not.
"""


def as_damping(damping: Any) -> AbstractDamping | None:
    """`damping` itself, or the one that `"auto"` stands for."""
    if isinstance(damping, str) and damping == "auto":
        return AdaptiveDamping()
    if damping is None or isinstance(damping, AbstractDamping):
        return damping
    raise TypeError(
        f'`damping` must be None, "auto" or an AbstractDamping, got {damping!r}.'
    )


def damping_field() -> Any:
    """The option `damping` of a sweep: none, unless it is asked for."""
    return eqx.field(default=None, converter=as_damping)
