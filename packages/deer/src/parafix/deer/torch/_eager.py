"""What `torch.compile` leaves out of its graphs."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch


_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def out_of_graphs(verb: _Verb) -> _Verb:
    """`verb`, which inside of what is being compiled runs as it does outside.

    A solve stops by what it finds, which the compiler cannot follow.
    """

    @functools.wraps(verb)
    def run(*args, **kwargs):
        if torch.compiler.is_compiling():
            eager: Any = torch.compiler.disable(verb)
            return eager(*args, **kwargs)
        return verb(*args, **kwargs)

    result: Any = run
    return result
