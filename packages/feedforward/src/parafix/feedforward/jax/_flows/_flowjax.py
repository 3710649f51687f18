import importlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .._adapter import AbstractFlowAdapter, is_a


class FlowjaxAdapter(AbstractFlowAdapter):
    """Bijections of flowjax."""

    def knows(self, transform):
        return is_a(transform, *_BIJECTION) or is_a(transform, *_DISTRIBUTION)

    def inverse(self, transform, y, context, solve):
        if is_a(transform, *_DISTRIBUTION):
            raise TypeError(
                f"{type(transform).__name__} is a distribution of flowjax. Pass a "
                "bijection: `flow.bijection`, or for the other direction "
                "`flowjax.bijections.Invert(flow.bijection)`."
            )
        # Masks are wrappers around weights, which flowjax takes off in every method.
        unwrap = importlib.import_module("paramax").unwrap
        return _exchanged(unwrap(transform), solve).inverse_and_log_det(y, context)


_BIJECTION = "flowjax.bijections.bijection", "AbstractBijection"
_DISTRIBUTION = "flowjax.distributions", "AbstractDistribution"
_MASKED = "flowjax.bijections.masked_autoregressive", "MaskedAutoregressive"
_SCAN = "flowjax.bijections.jax_transforms", "Scan"
_VMAP = "flowjax.bijections.jax_transforms", "Vmap"


def _exchanged(bijection, solve):
    """`bijection` with stand-ins for its autoregressive parts, inverted by `solve`.

    What flowjax composes it inverts by its own code, on the parts that it finds. Only
    its loops over parts have a stand-in, for what is known of a solve must get out.
    """
    kinds = ((_MASKED, _Masked), (_SCAN, _Scan), (_VMAP, _Vmap))

    def stand_in(part):
        for kind, replacement in kinds:
            if is_a(part, *kind) and _is_masked(part):
                return replacement(part, solve)
        return part

    is_part = lambda x: any(is_a(x, *kind) for kind, _ in kinds)
    return jax.tree.map(stand_in, bijection, is_leaf=is_part)


def _is_masked(bijection):
    is_leaf = lambda x: is_a(x, *_MASKED)
    return any(map(is_leaf, jax.tree.leaves(bijection, is_leaf=is_leaf)))


class _AbstractStandIn(eqx.Module):
    """What compositions of flowjax ask of a bijection."""

    original: Any
    solve: Any = eqx.field(static=True)

    @property
    def shape(self):
        return self.original.shape

    @property
    def cond_shape(self):
        return self.original.cond_shape


class _Masked(_AbstractStandIn):
    def transform_and_log_det(self, x, condition=None):
        return self.original.transform_and_log_det(x, condition)

    def inverse_and_log_det(self, y, condition=None):
        masked = self.original
        entry = lambda numbers, y: masked.transformer_constructor(numbers).inverse(y)

        def one_pass(x):
            given = x if condition is None else jnp.hstack((x, condition))
            numbers = masked.masked_autoregressive_mlp(given)
            return jax.vmap(entry)(numbers.reshape(len(x), -1), y)

        x = self.solve(one_pass, jnp.zeros_like(y))
        return x, -masked.transform_and_log_det(x, condition)[1]


class _Scan(_AbstractStandIn):
    """Layers one after the other, with the parameters stacked."""

    def transform_and_log_det(self, x, condition=None):
        return self._through("transform_and_log_det", x, condition, False)

    def inverse_and_log_det(self, y, condition=None):
        return self._through("inverse_and_log_det", y, condition, True)

    def _through(self, method, x, condition, reverse):
        arrays, others = eqx.partition(self.original.bijection, eqx.is_array)

        def step(carry, arrays):
            x, log_det = carry
            layer = eqx.combine(arrays, others)
            (x, new), found = self.solve.nested(
                lambda solve: getattr(_exchanged(layer, solve), method)(x, condition)
            )
            return (x, log_det + new.sum()), found

        init = (x, jnp.zeros((), x.dtype))
        (x, log_det), found = lax.scan(step, init, arrays, reverse=reverse)
        count = jax.tree.leaves(arrays)[0].shape[0]
        self.solve.add(found, count, reverse=reverse)
        return x, log_det


class _Vmap(_AbstractStandIn):
    """Parts side by side, with the parameters stacked, or some of them."""

    def transform_and_log_det(self, x, condition=None):
        return self._through("transform_and_log_det", x, condition)

    def inverse_and_log_det(self, y, condition=None):
        return self._through("inverse_and_log_det", y, condition)

    def _through(self, method, x, condition):
        def each(part, x, condition):
            return self.solve.nested(
                lambda solve: getattr(_exchanged(part, solve), method)(x, condition)
            )

        vmap = self.original
        mapped = eqx.filter_vmap(each, in_axes=vmap.in_axes, axis_size=vmap.axis_size)
        (x, log_det), found = mapped(vmap.bijection, x, condition)
        self.solve.add(found, vmap.axis_size)
        return x, log_det.sum()


ADAPTER = FlowjaxAdapter()
