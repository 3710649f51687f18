"""Programs for the harness from functions of PyTorch."""

from collections.abc import Callable
from typing import Any

import torch

from .environment import environment
from .harness import Answer, Facts, Program


# With more, small operations wait for threads to wake up.
torch.set_num_threads(1)


def torch_environment() -> dict[str, Any]:
    """Versions, and a device: everything here runs on the CPU, by one thread."""
    return {**environment("cpu", "cpu"), "threads": torch.get_num_threads()}


def torch_program(
    function: Callable[[], Any],
    answer: Callable[[Any], Answer],
    facts: Callable[[], Facts] = dict,
) -> Program:
    """`function()` as it is. On a CPU it has finished when it returns.

    **Arguments:**

    - `function`: what to run.
    - `answer`: from what it returns to what is compared with the reference.
    - `facts`: see `Program`.
    """
    return Program(run=function, answer=answer, facts=facts)


class Counted:
    """A function, and how many times it was called."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.calls = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.function(*arguments)
