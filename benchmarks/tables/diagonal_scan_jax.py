"""The diagonal affine scan in JAX, on a GPU."""

import functools as ft
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from parafix.core.jax import affine_scan

from ..harness import Case, Comparison, Contestant, Program
from ..jax_programs import jax_environment, jax_program
from ..roofline import (
    COPY,
    FORWARD,
    GRADIENT,
    KERNEL,
    LANES_CHECKED,
    NOTES,
    reference,
    SIZES,
    targets,
    Work,
)
from ..table import Table


OURS = "parafix, associative"
ASSOCIATIVE = "jax.lax.associative_scan"


@ft.lru_cache(maxsize=1)
def _data(work: Work):
    """`a`, `b` and the cotangents of the states."""
    keys = jax.random.split(jax.random.key(0), 3)
    a, b, g = (jax.random.uniform(key, (work.length, work.lanes)) for key in keys)
    # Decays between 0.9 and 1, as in layers.
    return 0.9 + 0.1 * a, b - 0.5, g - 0.5


def _some(x) -> np.ndarray:
    step = max(1, x.shape[1] // LANES_CHECKED)
    return np.asarray(x[:, ::step][:, :LANES_CHECKED])


def _reference(work: Work):
    return reference(*map(_some, _data(work)), work.group)


def _answer(outputs):
    return dict(zip(("x", "of a", "of b"), map(_some, outputs), strict=False))


def _solver(work: Work, solve) -> Program:
    def forward(a, b, g):
        del g
        return (solve(a, b),)

    def gradient(a, b, g):
        x, pull = jax.vjp(solve, a, b)
        return x, *pull(g)

    function = forward if work.group == FORWARD else gradient
    return jax_program(function, *_data(work), answer=_answer, facts=work.facts)


def _ours(work: Work, scan: str) -> Program:
    init = jnp.zeros(work.lanes)
    return _solver(work, lambda a, b: affine_scan(a, b, init, scan=scan))


def _associative(work: Work) -> Program:
    def combine(first, second):
        (a, x), (b, y) = first, second
        return a * b, b * x + y

    return _solver(work, lambda a, b: jax.lax.associative_scan(combine, (a, b))[1])


def _copy(work: Work) -> Program:
    source = jnp.zeros(work.bytes // 8)
    right = ft.cache(lambda: _reference(work))
    # One number changes, or nothing would be copied. Right by definition: what is
    # compared is time alone.
    return jax_program(
        lambda x: x.at[0].set(1), source, answer=lambda _: right(), facts=work.facts
    )


def _unavailable() -> str:
    return "" if jax.default_backend() == "gpu" else "no GPU"


def cases(quick: bool) -> Iterator[Case]:
    for length, lanes in SIZES:
        for group in (FORWARD, GRADIENT):
            work = Work(length // 64 if quick else length, lanes, group)
            makers = {
                KERNEL: ft.partial(_ours, work, "triton"),
                COPY: ft.partial(_copy, work),
                OURS: ft.partial(_ours, work, "associative"),
                ASSOCIATIVE: ft.partial(_associative, work),
            }
            yield Case(
                group,
                f"T={work.length} lanes={lanes}",
                [
                    Contestant(name, make, required=name != ASSOCIATIVE)
                    for name, make in makers.items()
                ],
                [Comparison(name, KERNEL) for name in (COPY, OURS, ASSOCIATIVE)],
                ft.partial(_reference, work),
                limit=1e-4,
                unavailable=_unavailable(),
            )


TABLE = Table(
    "The diagonal affine scan in JAX on a GPU",
    NOTES,
    cases,
    targets(ASSOCIATIVE),
    jax_environment,
)
