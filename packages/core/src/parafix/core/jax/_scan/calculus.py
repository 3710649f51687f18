"""The recurrence as a primitive of JAX, so that a scan can bring its own transpose.

`states` solves, `push` takes tangents along, `pull` takes cotangents back; each is
lowered to a scan for the platform that turns out, and is differentiated by what it is
in terms of `states`. So a first derivative is one pass of the scan's own, and every
other one is right.
"""

import functools as ft

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .abstract import AbstractScan
from .associative import AssociativeScan
from .fused import AbstractFusedScan
from .sequential import SequentialScan


def solve_fused(a, b, init, scan: AbstractFusedScan, reverse: bool, fallback: bool):
    """The states, for a diagonal `a`.

    **Arguments:**

    - `scan`: takes every platform that it has no reason against.
    - `fallback`: whether others get another scan; else lowering raises.
    """
    return _states.bind(a, b, init, scan=scan, reverse=reverse, fallback=fallback)


def _scan_for(platform, scan, fallback) -> AbstractScan:
    reasons = scan.reasons_against_platform(platform)
    if not reasons:
        return scan
    if not fallback:
        raise ValueError(
            f"{scan!r} cannot solve this recurrence: " + "; ".join(reasons)
        )
    return SequentialScan() if platform == "cpu" else AssociativeScan()


# What the primitives are, in terms of a function that solves. Time is axis 0.


def _entering(x, init, reverse):
    """The state that enters each step: the one before, the first time `init`."""
    parts = [x[1:], init[None]] if reverse else [init[None], x[:-1]]
    return jnp.concatenate(parts)


def _sum_to(x, shape):
    axes = [i for i, size in enumerate(x.shape) if size != shape[i]]
    return x.sum(axes, keepdims=True) if axes else x


def _push_by(solve, a, x, init, a_t, b_t, init_t, reverse):
    return solve(a, b_t + a_t * _entering(x, init, reverse), init_t, reverse)


def _pull_by(solve, a, x, init, g, reverse, with_a):
    # The cotangents, each where the `a` stands that takes it on: the same `a` at the
    # same times, the other way.
    last = g[0] if reverse else g[-1]
    shifted = solve(a, _entering(g, jnp.zeros_like(init), reverse), last, not reverse)
    of_b = _entering(shifted, last, not reverse)
    of_init = shifted[-1] if reverse else shifted[0]
    if not with_a:
        return of_b, of_init
    return _sum_to(of_b * _entering(x, init, reverse), a.shape), of_b, of_init


def _again(params):
    """`solve` as the primitive, with the scan that `params` name."""
    kept = {"scan": params["scan"], "fallback": params["fallback"]}
    return lambda a, b, init, reverse: _states.bind(a, b, init, reverse=reverse, **kept)


def _push_again(*arguments, **params):
    return _push_by(_again(params), *arguments, reverse=params["reverse"])


def _pull_again(*arguments, **params):
    reverse, with_a = params["reverse"], params["with_a"]
    return _pull_by(_again(params), *arguments, reverse=reverse, with_a=with_a)


# Lowering.


def _run_states(a, b, init, *, platform, scan, reverse, fallback):
    return _scan_for(platform, scan, fallback).solve(a, b, init, reverse)


def _run_push(*arguments, platform, scan, reverse, fallback):
    solve = _scan_for(platform, scan, fallback).solve
    return _push_by(solve, *arguments, reverse=reverse)


def _run_pull(a, x, init, g, *, platform, scan, reverse, fallback, with_a):
    found = _scan_for(platform, scan, fallback)
    if not isinstance(found, AbstractFusedScan):
        return _pull_by(found.solve, a, x, init, g, reverse, with_a)
    of_a, of_b, of_init = found.vjp(a, x, init, g, reverse, with_a)
    return (of_a, of_b, of_init) if with_a else (of_b, of_init)


def _primitive(name, run, *, several):
    made = Primitive(f"parafix_{name}")
    made.multiple_results = several

    @ft.cache
    def compiled(**params):
        return jax.jit(lambda *arguments: made.bind(*arguments, **params))

    made.def_impl(lambda *arguments, **params: compiled(**params)(*arguments))
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        rule = mlir.lower_fun(
            ft.partial(run, platform=platform), multiple_results=several
        )
        mlir.register_lowering(made, rule, platform=platform)
    return made


_states = _primitive("affine_states", _run_states, several=False)
_push = _primitive("affine_push", _run_push, several=False)
_pull = _primitive("affine_pull", _run_pull, several=True)


@_states.def_abstract_eval
def _states_shape(a, b, init, **params):
    del a, init, params
    return ShapedArray(b.shape, b.dtype)


@_push.def_abstract_eval
def _push_shape(a, x, init, a_t, b_t, init_t, **params):
    del a, init, a_t, b_t, init_t, params
    return ShapedArray(x.shape, x.dtype)


@_pull.def_abstract_eval
def _pull_shapes(a, x, init, g, *, with_a, **params):
    del g, params
    like = (a, x, init) if with_a else (x, init)
    return [ShapedArray(each.shape, each.dtype) for each in like]


# Forward mode.


def _states_jvp(primals, tangents, **params):
    a, b, init = primals
    a_t, b_t, init_t = tangents
    x = _states.bind(a, b, init, **params)
    b_t, init_t = ad.instantiate_zeros(b_t), ad.instantiate_zeros(init_t)
    if isinstance(a_t, ad.Zero):
        return x, _states.bind(a, b_t, init_t, **params)
    return x, _push.bind(a, x, init, a_t, b_t, init_t, **params)


def _jvp_by(again, primals, tangents, **params):
    """Of a primitive that is `again` in terms of others."""
    tangents = [ad.instantiate_zeros(tangent) for tangent in tangents]
    return jax.jvp(ft.partial(again, **params), tuple(primals), tuple(tangents))


ad.primitive_jvps[_states] = _states_jvp
ad.primitive_jvps[_push] = ft.partial(_jvp_by, _push_again)
ad.primitive_jvps[_pull] = ft.partial(_jvp_by, _pull_again)


# Reverse mode. Linear are the tangents, `b` and `init` for one; the rest is known.


def _linear(cotangent, argument):
    return cotangent if ad.is_undefined_primal(argument) else None


def _states_transpose(g, a, b, init, **params):
    if isinstance(g, ad.Zero):
        return None, None, None
    # Neither the states nor the first of them are looked at without those of `a`.
    like = jnp.zeros_like(g[0])
    of_b, of_init = _pull.bind(a, g, like, g, with_a=False, **params)
    return None, _linear(of_b, b), _linear(of_init, init)


def _push_transpose(g, a, x, init, a_t, b_t, init_t, **params):
    if isinstance(g, ad.Zero):
        return (None,) * 6
    found = _pull.bind(a, x, init, g, with_a=True, **params)
    return None, None, None, *map(_linear, found, (a_t, b_t, init_t))


def _pull_transpose(cotangents, a, x, init, g, **params):
    cotangents = [ad.instantiate_zeros(each) for each in cotangents]
    along = lambda g: _pull_again(a, x, init, g, **params)
    (of_g,) = jax.linear_transpose(along, g.aval)(tuple(cotangents))
    return None, None, None, of_g


ad.primitive_transposes[_states] = _states_transpose
ad.primitive_transposes[_push] = _push_transpose
ad.primitive_transposes[_pull] = _pull_transpose


# `vmap` makes one more axis of the batch, after time.


def _batched(size, argument, dim, axis, *, whole=True):
    """`argument` with the new axis at `axis`; of size 1 if all share it and may."""
    if dim is not None:
        return jnp.moveaxis(argument, dim, axis)
    argument = jnp.expand_dims(argument, axis)
    if not whole:
        return argument
    shape = list(argument.shape)
    shape[axis] = size
    return jnp.broadcast_to(argument, shape)


def _size(arguments, dims):
    return next(
        argument.shape[dim]
        for argument, dim in zip(arguments, dims, strict=True)
        if dim is not None
    )


def _states_batch(arguments, dims, **params):
    size = _size(arguments, dims)
    a, b, init = (
        _batched(size, argument, dim, axis, whole=axis != 1 or place > 0)
        for place, (argument, dim, axis) in enumerate(
            zip(arguments, dims, (1, 1, 0), strict=True)
        )
    )
    return _states.bind(a, b, init, **params), 1


def _push_batch(arguments, dims, **params):
    size = _size(arguments, dims)
    # `a` and its tangent have one shape.
    shared = all(dims[place] is None for place in (0, 3))
    axes = (1, 1, 0, 1, 1, 0)
    moved = [
        _batched(size, argument, dim, axis, whole=not (shared and place in (0, 3)))
        for place, (argument, dim, axis) in enumerate(
            zip(arguments, dims, axes, strict=True)
        )
    ]
    return _push.bind(*moved, **params), 1


def _pull_batch(arguments, dims, *, with_a, **params):
    size = _size(arguments, dims)
    # Every sample has a cotangent of `a` to itself.
    moved = [
        _batched(size, argument, dim, axis, whole=with_a or place > 0)
        for place, (argument, dim, axis) in enumerate(
            zip(arguments, dims, (1, 1, 0, 1), strict=True)
        )
    ]
    found = _pull.bind(*moved, with_a=with_a, **params)
    return found, (1, 1, 0) if with_a else (1, 0)


batching.primitive_batchers[_states] = _states_batch
batching.primitive_batchers[_push] = _push_batch
batching.primitive_batchers[_pull] = _pull_batch
