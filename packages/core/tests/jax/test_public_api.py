import parafix.core.jax


def test_names():
    assert parafix.core.jax.__all__ == [
        "GMRES",
        "RESULTS",
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
        "root_find",
        "solve_causal",
        "solve_chain",
        "structure_of",
    ]


def test_names_exist_and_are_documented():
    for name in parafix.core.jax.__all__:
        value = getattr(parafix.core.jax, name)
        assert value.__doc__, name
        if name != "Causality":
            # Words, which need no framework.
            assert value.__module__.startswith("parafix.core.jax."), name


def test_registered_components_are_there():
    for component in parafix.core.components(backend="jax"):
        if component.distribution == "parafix-core":
            kind, name = component.kind, component.name
            assert parafix.core.get(kind, name, backend="jax")
