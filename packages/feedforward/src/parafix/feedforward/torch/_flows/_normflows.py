from .._adapter import AbstractFlowAdapter, is_a
from ._masked import with_solves


class NormflowsAdapter(AbstractFlowAdapter):
    """Flows of normflows, one or those of a model."""

    def knows(self, transform):
        return is_a(transform, "normflows.flows.base", "Flow") or _is_model(transform)

    def inverse(self, transform, y, context, solve):
        name = "normflows.flows.affine.autoregressive", "Autoregressive"
        flow = with_solves(transform, *name, solve)
        inverse = flow.inverse_and_log_det if _is_model(flow) else flow.inverse
        # Some of its flows take no context.
        return inverse(y) if context is None else inverse(y, context=context)


def _is_model(transform):
    return is_a(transform, "normflows.core", "NormalizingFlow")


ADAPTER = NormflowsAdapter()
