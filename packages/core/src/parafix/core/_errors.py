"""The errors of the registry, each with a message in the user's terms."""


class UnknownComponentError(LookupError):
    """Nothing is registered under the name that was asked for.

    The message says what to install if a distribution is known to have the name, and
    otherwise which names come close and which are there.
    """


class AmbiguousComponentError(LookupError):
    """Several distributions register the name that was asked for.

    The message names them, and the `"distribution:name"` that chooses each.
    """


class ComponentImportError(ImportError):
    """What was asked for is registered, but its target cannot be imported."""


class MissingFrameworkError(ComponentImportError):
    """A target cannot be imported because an optional library is not installed.

    The message says which extra brings it.
    """


def one_line(error: BaseException) -> str:
    """The type and the message of an error, on one line."""
    message = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {message}" if message else name
