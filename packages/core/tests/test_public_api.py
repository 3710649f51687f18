import importlib.resources

import parafix.core


def test_names():
    assert parafix.core.__all__ == [
        "AmbiguousComponentError",
        "Component",
        "ComponentImportError",
        "Demo",
        "Failure",
        "MissingFrameworkError",
        "UnknownComponentError",
        "__version__",
        "components",
        "demos",
        "failures",
        "get",
        "hookimpl",
        "register",
    ]


def test_names_exist_and_are_documented():
    for name in parafix.core.__all__:
        value = getattr(parafix.core, name)
        if name not in ("__version__", "hookimpl"):
            assert value.__doc__
            assert value.__module__.startswith("parafix.core.")


def test_errors():
    # Whoever catches the built-in error catches ours.
    assert issubclass(parafix.core.UnknownComponentError, LookupError)
    assert issubclass(parafix.core.AmbiguousComponentError, LookupError)
    assert issubclass(parafix.core.ComponentImportError, ImportError)
    assert issubclass(
        parafix.core.MissingFrameworkError, parafix.core.ComponentImportError
    )


def test_version_is_the_installed_one():
    from importlib import metadata

    assert parafix.core.__version__ == metadata.version("parafix-core")


def test_typed():
    assert (importlib.resources.files("parafix.core") / "py.typed").is_file()
