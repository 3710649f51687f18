"""Programs for the harness from JAX functions."""

import contextlib
import hashlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .environment import environment
from .harness import Answer, Facts, Program


def jax_environment() -> dict[str, Any]:
    device = jax.devices()[0]
    return environment(device.device_kind, device.platform)


def jax_program(
    function: Callable[..., Any],
    *arguments: Any,
    facts: Callable[[], Facts] = dict,
    answer: Callable[[Any], Answer] | None = None,
    wide: bool = False,
) -> Program:
    """`function(*arguments)`, compiled ahead of time.

    The arrays are arguments of the compiled program and no constants in it, so nothing
    is folded away.

    **Arguments:**

    - `function`, `arguments`: what to run.
    - `facts`: see `Program`.
    - `answer`: from the output to what is compared with the reference; by default the
        arrays of the output, named by their paths.
    - `wide`: compile with 64-bit numbers, which JAX else makes 32-bit ones.
    """

    # One name for all: it is part of the program's text, and so of its fingerprint.
    def program(*arguments):
        return function(*arguments)

    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        arguments = jax.device_put(arguments)
        start = time.perf_counter()
        lowered = jax.jit(program).lower(*arguments)
        compiled = lowered.compile()
        compile_seconds = time.perf_counter() - start
    # The text before optimisation, without source locations: the same text leads to the
    # same program.
    fingerprint = hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]
    return Program(
        run=lambda: compiled(*arguments),
        wait=jax.block_until_ready,
        answer=named_arrays if answer is None else answer,
        facts=facts,
        compile_seconds=compile_seconds,
        temporary_bytes=_temporary_bytes(compiled),
        fingerprint=fingerprint,
    )


def _temporary_bytes(compiled) -> int | None:
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def named_arrays(tree: Any) -> Answer:
    """The leaves of a pytree by their paths, as NumPy arrays."""
    return {
        jax.tree_util.keystr(path) or "value": np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def in_float64(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` with every float in float64, as NumPy arrays."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), arguments)
        return jax.tree.map(np.asarray, jax.jit(function)(*wide))
