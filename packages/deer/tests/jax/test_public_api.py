import parafix.core
import parafix.deer.jax


def test_names():
    assert parafix.deer.jax.__all__ == [
        "DEER",
        "ELK",
        "AdaptiveDamping",
        "Choice",
        "DiagonalGRUCell",
        "DiagonalLSTMCell",
        "LEMCell",
        "MultiHeadGRUCell",
        "Picard",
        "QuasiDEER",
        "QuasiELK",
        "TrustRegion",
        "check_structure",
        "choose",
        "diffeqsolve",
        "multistep",
        "scan",
        "seq1d",
        "solve_idae",
        "solve_ivp",
    ]


def test_names_exist_and_are_documented():
    for name in parafix.deer.jax.__all__:
        value = getattr(parafix.deer.jax, name)
        assert value.__doc__, name
        assert value.__module__.startswith("parafix.deer.jax."), name


def test_deer_is_registered():
    assert (
        parafix.core.get("rootfinder", "deer", backend="jax") is parafix.deer.jax.DEER
    )
