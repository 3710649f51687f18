"""Programs for the harness from PyTorch functions on a GPU.

Imports PyTorch on first use, so that tables can be listed where it is not installed.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

from .environment import environment
from .harness import Answer, Facts, Program


def torch_unavailable() -> str:
    """Why nothing can be measured on a GPU with PyTorch here; empty if it can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    return "" if torch.cuda.is_available() else "no GPU"


def torch_environment() -> dict[str, Any]:
    if torch_unavailable():
        return environment()
    import torch

    return environment(torch.cuda.get_device_name(), "gpu")


def torch_program(
    function: Callable[[], Any],
    answer: Callable[[Any], Answer],
    facts: Callable[[], Facts] = dict,
) -> Program:
    """`function()`, timed until the device has finished."""
    import torch

    return Program(
        run=function,
        wait=lambda output: torch.cuda.synchronize(),
        answer=answer,
        facts=facts,
    )
