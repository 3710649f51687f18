import parafix.core.torch
import parafix.feedforward.torch


# What the core has already, under the name that people look for.
OF_CORE = ("Causality", "check_causal", "solve_causal")


def test_names():
    assert parafix.feedforward.torch.__all__ == [
        "AbstractFlowAdapter",
        "Causality",
        "GSJacobi",
        "JacobiGS",
        "TriangularAnderson",
        "check_causal",
        "invert",
        "register_flow_adapter",
        "solve_causal",
    ]


def test_names_exist_and_are_documented():
    for name in parafix.feedforward.torch.__all__:
        value = getattr(parafix.feedforward.torch, name)
        assert value.__doc__, name
        if name in OF_CORE:
            assert value is getattr(parafix.core.torch, name)
        else:
            assert value.__module__.startswith("parafix.feedforward.torch."), name
