from jax import lax

from .abstract import AbstractScan
from .algebra import apply


class SequentialScan(AbstractScan):
    """One step after the other: `lax.scan`. `O(T n^2)` work (`O(T n)` if diagonal).

    The fewest operations of all scans, and on a CPU most often the fastest.
    """

    unroll: int = 4

    def solve(self, a, b, init, reverse):
        if a.shape[0] == 1:
            # Constant in time: nothing to slice.
            constant = a[0]

            def constant_body(x, b_t):
                x = apply(constant, x) + b_t
                return x, x

            _, x = lax.scan(constant_body, init, b, reverse=reverse, unroll=self.unroll)
            return x

        def body(x, inputs):
            a_t, b_t = inputs
            x = apply(a_t, x) + b_t
            return x, x

        _, x = lax.scan(body, init, (a, b), reverse=reverse, unroll=self.unroll)
        return x

    def reasons_against(self, a, b):
        del a, b
        return []


SequentialScan.__init__.__doc__ = """**Arguments:**

- `unroll`: how many steps one iteration of the compiled loop takes.
"""
