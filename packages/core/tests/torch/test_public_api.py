import ast
import importlib.resources

import parafix.core.torch


def test_names():
    assert parafix.core.torch.__all__ == [
        "GMRES",
        "LU",
        "RESULTS",
        "AbstractAdjoint",
        "AbstractCausalSweep",
        "AbstractDamping",
        "AbstractDenseTangent",
        "AbstractFusedScan",
        "AbstractIteration",
        "AbstractScan",
        "AbstractStructure",
        "AbstractSweep",
        "Anderson",
        "AssociativeScan",
        "BlockedScan",
        "Blocks",
        "Broyden",
        "Causality",
        "Chain",
        "ChainAdjoint",
        "Custom",
        "Dense",
        "Diagonal",
        "FixedPoint",
        "ImplicitAdjoint",
        "Jacobi",
        "Leaf",
        "Newton",
        "NewtonKrylov",
        "OneStepAdjoint",
        "PhantomAdjoint",
        "Sequential",
        "SequentialScan",
        "Solution",
        "Structured",
        "TritonScan",
        "UnrolledAdjoint",
        "affine_scan",
        "as_sweep",
        "assess",
        "attach",
        "check_causal",
        "check_structure",
        "checked_count",
        "checked_tolerance",
        "compose",
        "default_tolerance",
        "fixed_point",
        "jacobian",
        "over_time",
        "root_find",
        "solve_causal",
        "solve_chain",
        "structure_of",
    ]


def test_names_are_those_of_the_other_half():
    # Read, not imported: JAX is not installed where this runs.
    source = importlib.resources.files("parafix.core") / "jax" / "__init__.py"
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source.read_text("utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    # Which JAX users take from Optimistix, from Lineax and from `jax.vmap`.
    of_others = {"AbstractAdjoint", "LU", "over_time"}
    assert set(parafix.core.torch.__all__) - set(names) == of_others


def test_names_exist_and_are_documented():
    for name in parafix.core.torch.__all__:
        value = getattr(parafix.core.torch, name)
        assert value.__doc__, name
        if name != "Causality":
            # Words, which need no framework.
            assert value.__module__.startswith("parafix.core.torch."), name


def test_registered_components_are_there():
    for component in parafix.core.components(backend="torch"):
        if component.distribution == "parafix-core":
            kind, name = component.kind, component.name
            assert parafix.core.get(kind, name, backend="torch")
