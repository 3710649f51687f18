"""Both backends have the same names, signatures, results and registered components.

Where they differ, a table says so and why; an entry that is not needed is an error too.
"""

import dataclasses
import inspect

import pytest

import parafix.core
import parafix.core.jax as in_jax
import parafix.core.testing.jax as testing_jax
import parafix.core.testing.torch as testing_torch
import parafix.core.torch as in_torch


# Of the public module of a package: what only one backend has.
CHAINS = "chains are not there yet in PyTorch"
ONLY_JAX = {
    "parafix.core": dict.fromkeys(
        (
            "AbstractSweep",
            "Chain",
            "ChainAdjoint",
            "Jacobi",
            "Leaf",
            "Sequential",
            "as_sweep",
            "assess",
            "jacobian",
            "solve_chain",
        ),
        CHAINS,
    ),
    "parafix.core.testing": {
        "python_loop": "an oracle of chains",
        "reference_scan": "it is about jax.lax.scan",
        **dict.fromkeys(
            ("Recurrence", "gru", "logistic", "lstm", "tanh_cell"),
            "a recurrence, for chains",
        ),
        "temporary_bytes": "of compiled programs; largest_bytes in PyTorch",
    },
}
ONLY_TORCH = {
    "parafix.core": {
        "AbstractAdjoint": "an adjoint of Optimistix in JAX",
        "LU": "a solver of Lineax in JAX",
    },
    "parafix.core.testing": {
        "largest_bytes": "nothing is compiled; temporary_bytes in JAX",
    },
}
MODULES = {
    "parafix.core": (in_jax, in_torch),
    "parafix.core.testing": (testing_jax, testing_torch),
}

VERBS = ("affine_scan", "fixed_point", "root_find")
CONSTRUCTORS = (
    "Anderson",
    "AssociativeScan",
    "BlockedScan",
    "Broyden",
    "FixedPoint",
    "GMRES",
    "ImplicitAdjoint",
    "Newton",
    "NewtonKrylov",
    "OneStepAdjoint",
    "PhantomAdjoint",
    "SequentialScan",
    "UnrolledAdjoint",
)
OTHER_DEFAULT = {
    ("Newton", "linear_solver"): "a solver of Lineax; LU in PyTorch",
}
ONLY_JAX_PARAMETERS = {
    ("SequentialScan", "unroll"): "a loop in Python has nothing to unroll",
}
ONLY_TORCH_PARAMETERS = {
    ("UnrolledAdjoint", "checkpoint"): "JAX always does: steps are of a bounded loop",
}


@pytest.mark.parametrize("package", MODULES)
def test_public_names(package):
    ours, theirs = (set(module.__all__) for module in MODULES[package])
    assert ours - theirs == set(ONLY_JAX[package])
    assert theirs - ours == set(ONLY_TORCH[package])


def parameters(item):
    """`{name: (whether by keyword only, default)}` of what is public."""
    signature = inspect.signature(item)
    return {
        name: (p.kind is inspect.Parameter.KEYWORD_ONLY, p.default)
        for name, p in signature.parameters.items()
    }


@pytest.mark.parametrize("name", VERBS)
def test_signatures_of_verbs(name):
    ours, theirs = (parameters(getattr(module, name)) for module in (in_jax, in_torch))
    assert list(ours.items()) == list(theirs.items())


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_signatures_of_constructors(name):
    ours, theirs = (parameters(getattr(module, name)) for module in (in_jax, in_torch))
    for here, there, table in (
        (ours, theirs, ONLY_JAX_PARAMETERS),
        (theirs, ours, ONLY_TORCH_PARAMETERS),
    ):
        extra = {key for key in here if key not in there}
        assert extra == {key for cls, key in table if cls == name}
    shared = [key for key in ours if key in theirs]
    assert shared == [key for key in theirs if key in ours]
    for key in shared:
        (keyword, default), (other_keyword, other) = ours[key], theirs[key]
        assert keyword == other_keyword
        if (name, key) in OTHER_DEFAULT:
            assert type(default).__module__.split(".")[0] == "lineax"
            assert other == in_torch.LU()
        elif type(default).__name__ in CONSTRUCTORS:
            assert type(default).__name__ == type(other).__name__
        else:
            assert default == other


def test_every_constructor_is_compared():
    classes = {
        name
        for name in set(in_jax.__all__) & set(in_torch.__all__)
        if inspect.isclass(getattr(in_torch, name)) and not name.startswith("Abstract")
    }
    assert classes == {*CONSTRUCTORS, "RESULTS", "Solution"}


def test_fields_of_a_solution():
    fields = [
        [field.name for field in dataclasses.fields(module.Solution)]
        for module in (in_jax, in_torch)
    ]
    assert fields[0] == fields[1]


def test_results():
    for code, name in enumerate(in_torch.RESULTS.__members__):
        ours, theirs = getattr(in_jax.RESULTS, name), getattr(in_torch.RESULTS, name)
        assert int(ours._value) == int(theirs) == code
        assert in_jax.RESULTS[ours] == in_torch.RESULTS[theirs]
    assert len(in_jax.RESULTS) == len(in_torch.RESULTS)


# What is registered under names that PyTorch does not have.
REGISTERED_IN_JAX = {
    ("rootfinder", "sequential"): CHAINS,
    ("rootfinder", "jacobi"): CHAINS,
    **{
        ("rootfinder", name): "Optimistix's own"
        for name in ("bfgs", "chord", "dogleg", "gauss-newton", "levenberg-marquardt")
    },
}


def test_registered_names():
    ours, theirs = (
        {
            (item.kind, item.name)
            for item in parafix.core.components(backend=backend)
            if item.distribution == "parafix-core"
        }
        for backend in ("jax", "torch")
    )
    assert ours - theirs == set(REGISTERED_IN_JAX)
    assert theirs <= ours
