from .._adapter import AbstractFlowAdapter, is_a
from ._masked import with_solves


class NflowsAdapter(AbstractFlowAdapter):
    """Transforms and flows of nflows."""

    def knows(self, transform):
        return is_a(transform, "nflows.transforms.base", "Transform") or _is_flow(
            transform
        )

    def inverse(self, transform, y, context, solve):
        if _is_flow(transform):
            context = transform._embedding_net(context)
            transform = transform._transform
        name = "nflows.transforms.autoregressive", "AutoregressiveTransform"
        return with_solves(transform, *name, solve).inverse(y, context)


def _is_flow(transform):
    return is_a(transform, "nflows.flows.base", "Flow")


ADAPTER = NflowsAdapter()
