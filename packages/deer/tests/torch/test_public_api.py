import ast
import importlib.resources

import parafix.core
import parafix.deer.torch


def test_names():
    assert parafix.deer.torch.__all__ == [
        "DEER",
        "ELK",
        "GRU",
        "LSTM",
        "RK4",
        "RNN",
        "AbstractExplicitRungeKutta",
        "AbstractOneStep",
        "AdaptiveDamping",
        "Choice",
        "ClassicalRK4",
        "DiagonalGRUCell",
        "DiagonalLSTMCell",
        "Euler",
        "Heun",
        "Heun3",
        "ImplicitMidpoint",
        "LEMCell",
        "LayerChoice",
        "LayerInfo",
        "Midpoint",
        "MultiHeadGRUCell",
        "Picard",
        "QuasiDEER",
        "QuasiELK",
        "TrustRegion",
        "check_structure",
        "choose",
        "choose_layer",
        "scan",
        "solve_ivp",
    ]


def test_names_exist_and_are_documented():
    for name in parafix.deer.torch.__all__:
        value = getattr(parafix.deer.torch, name)
        assert value.__doc__, name
        assert value.__module__.startswith("parafix.deer.torch."), name


def test_the_solvers_are_registered():
    solvers = {
        "deer": parafix.deer.torch.DEER,
        "elk": parafix.deer.torch.ELK,
        "picard": parafix.deer.torch.Picard,
        "quasi-deer": parafix.deer.torch.QuasiDEER,
        "quasi-elk": parafix.deer.torch.QuasiELK,
    }
    for name, solver in solvers.items():
        assert parafix.core.get("rootfinder", name, backend="torch") is solver


def test_names_are_those_of_the_other_half():
    # Read, not imported: JAX is not installed where this runs.
    source = importlib.resources.files("parafix.deer") / "jax" / "__init__.py"
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source.read_text("utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    # A drop-in for a library of JAX, and the interface of research code in JAX.
    only = {"diffeqsolve", "multistep", "seq1d", "solve_idae"}
    assert set(names) - only <= set(parafix.deer.torch.__all__)
    assert only <= set(names)
