import parafix.core
import parafix.deer.torch


def test_names():
    assert parafix.deer.torch.__all__ == [
        "DEER",
        "GRU",
        "LSTM",
        "RNN",
        "Choice",
        "LayerChoice",
        "LayerInfo",
        "choose",
        "choose_layer",
        "scan",
    ]


def test_names_exist_and_are_documented():
    for name in parafix.deer.torch.__all__:
        value = getattr(parafix.deer.torch, name)
        assert value.__doc__, name
        assert value.__module__.startswith("parafix.deer.torch."), name


def test_deer_is_registered():
    assert (
        parafix.core.get("rootfinder", "deer", backend="torch")
        is parafix.deer.torch.DEER
    )
