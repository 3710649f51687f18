"""Both backends have the same names, signatures, results and registered components.

Where they differ, a table says so and why; an entry that is not needed is an error too.
"""

import dataclasses
import inspect

import pytest

import parafix.core
import parafix.core.jax as core_jax
import parafix.core.testing.jax as testing_jax
import parafix.core.testing.torch as testing_torch
import parafix.core.torch as core_torch
import parafix.deer.jax as deer_jax
import parafix.deer.torch as deer_torch
import parafix.feedforward.jax as feedforward_jax
import parafix.feedforward.torch as feedforward_torch


MODULES = {
    "core": (core_jax, core_torch),
    "core.testing": (testing_jax, testing_torch),
    "deer": (deer_jax, deer_torch),
    "feedforward": (feedforward_jax, feedforward_torch),
}

# Of the public modules: what only one backend has.
LAYERS = "the layers of torch.nn; JAX has no layers of its own"
ONLY_JAX = {
    "core": {},
    "core.testing": {
        "python_loop": "lax.scan with a slow step; in PyTorch reference_scan is a loop",
        "temporary_bytes": "of compiled programs; largest_bytes in PyTorch",
    },
    "deer": {},
    "feedforward": {},
}
ONLY_TORCH = {
    "core": {
        "AbstractAdjoint": "an adjoint of Optimistix in JAX",
        "LU": "a solver of Lineax in JAX",
        "over_time": "jax.vmap in JAX",
    },
    "core.testing": {"largest_bytes": "nothing is compiled; temporary_bytes in JAX"},
    "deer": dict.fromkeys(
        ("GRU", "LSTM", "LayerChoice", "LayerInfo", "RNN", "choose_layer"), LAYERS
    ),
    "feedforward": {},
}

# Of what both have: parameters that only one has, and other defaults.
CELLS = ("DiagonalGRUCell", "DiagonalLSTMCell", "LEMCell", "MultiHeadGRUCell")
ONLY_JAX_PARAMETERS = {
    **{(cell, "key"): "PyTorch has a generator of its own" for cell in CELLS},
    ("Chain", "origin"): "in PyTorch the step of `scan` does what resets ask for",
    ("Chain", "resets"): "the same",
    ("affine_scan", "resets"): "the same",
    ("SequentialScan", "unroll"): "a loop in Python has nothing to unroll",
    ("scan", "unroll"): "the same",
    ("Choice", "adjoint"): "on a CPU a loop in Python is slower than sweeps that pay",
}
ONLY_TORCH_PARAMETERS = {
    **{(cell, "device"): "as every module of torch.nn" for cell in CELLS},
    ("Chain", "broadcasts"): "in JAX a step is for one sample, under jax.vmap",
    ("Chain", "linearised"): "JAX linearises every step by itself",
    ("UnrolledAdjoint", "checkpoint"): "JAX always does: steps are of a bounded loop",
    ("solve_chain", "growth"): "JAX drops what nobody looks at",
    ("assess", "growth"): "the same",
    ("choose", "samples"): "a batch is invisible under jax.vmap",
}
OTHER_DEFAULT = {
    ("Newton", "linear_solver"): "a solver of Lineax; LU in PyTorch",
    ("Solution", "position"): "JAX needs an integer where chains are compiled",
}
# Abstract classes take arguments where dataclasses hand them on, and an enumeration is
# made by nobody.
WITHOUT = ("AbstractCausalSweep", "AbstractIteration", "AbstractSweep", "RESULTS")

SHARED = [
    (package, name)
    for package in ("core", "deer", "feedforward")
    for name in MODULES[package][0].__all__
    if name in MODULES[package][1].__all__ and name not in WITHOUT
]


@pytest.mark.parametrize("package", MODULES)
def test_public_names(package):
    ours, theirs = (set(module.__all__) for module in MODULES[package])
    assert ours - theirs == set(ONLY_JAX[package])
    assert theirs - ours == set(ONLY_TORCH[package])


def parameters(module, name):
    """`{name: (its kind, its default)}`."""
    signature = inspect.signature(getattr(module, name))
    return {key: (p.kind, p.default) for key, p in signature.parameters.items()}


@pytest.mark.parametrize(("package", "name"), SHARED)
def test_signatures(package, name):
    ours, theirs = (parameters(module, name) for module in MODULES[package])
    for here, there, table in (
        (ours, theirs, ONLY_JAX_PARAMETERS),
        (theirs, ours, ONLY_TORCH_PARAMETERS),
    ):
        extra = {key for key in here if key not in there}
        assert extra == {key for item, key in table if item == name}
    shared = [key for key in ours if key in theirs]
    assert shared == [key for key in theirs if key in ours]
    for key in shared:
        (kind, default), (other_kind, other) = ours[key], theirs[key]
        assert kind == other_kind
        same = default == other
        if type(default).__module__.startswith("parafix."):
            # An object of ours, of which each backend has its own.
            same = type(default).__name__ == type(other).__name__
        assert same == ((name, key) not in OTHER_DEFAULT), (default, other)


def test_tables_are_of_what_there_is():
    names = {name for _, name in SHARED}
    tables = (ONLY_JAX_PARAMETERS, ONLY_TORCH_PARAMETERS, OTHER_DEFAULT)
    assert {item for table in tables for item, _ in table} <= names
    assert {*WITHOUT} <= {*core_jax.__all__} & {*core_torch.__all__}


def test_fields_of_a_solution():
    fields = [
        [field.name for field in dataclasses.fields(module.Solution)]
        for module in (core_jax, core_torch)
    ]
    assert fields[0] == fields[1]


def test_results():
    for code, name in enumerate(core_torch.RESULTS.__members__):
        ours = getattr(core_jax.RESULTS, name)
        theirs = getattr(core_torch.RESULTS, name)
        assert int(ours._value) == int(theirs) == code
        assert core_jax.RESULTS[ours] == core_torch.RESULTS[theirs]
    assert len(core_jax.RESULTS) == len(core_torch.RESULTS)


# What is registered under names that PyTorch does not have: Optimistix's own.
REGISTERED_IN_JAX = {
    ("rootfinder", name)
    for name in ("bfgs", "chord", "dogleg", "gauss-newton", "levenberg-marquardt")
}


@pytest.mark.parametrize("package", ["core", "deer", "feedforward"])
def test_registered_names(package):
    ours, theirs = (
        {
            (item.kind, item.name)
            for item in parafix.core.components(backend=backend)
            if item.distribution == f"parafix-{package}"
        }
        for backend in ("jax", "torch")
    )
    assert ours - theirs == (REGISTERED_IN_JAX if package == "core" else set())
    assert theirs
    assert theirs <= ours
