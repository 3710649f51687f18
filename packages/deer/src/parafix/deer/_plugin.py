"""What parafix-deer registers."""

from collections.abc import Iterator
from typing import Final

from parafix.core import Component, Demo, hookimpl


_LIM: Final = """\
@inproceedings{lim2024parallelizing,
  title = {Parallelizing Non-linear Sequential Models over the Sequence Length},
  author = {Lim, Yi Heng and Zhu, Qi and Selfridge, Joshua and
            Kasim, Muhammad Firmansyah},
  booktitle = {The Twelfth International Conference on Learning Representations},
  year = {2024},
  eprint = {2309.12252},
  archivePrefix = {arXiv}
}"""


@hookimpl
def parafix_rootfinders() -> Iterator[Component]:
    for backend in ("jax", "torch"):
        yield Component(
            "rootfinder",
            "deer",
            backend,
            f"parafix.deer.{backend}:DEER",
            summary="Newton for chains: full Jacobian blocks and one scan per sweep",
            cite=(_LIM,),
        )


@hookimpl
def parafix_demos() -> Iterator[Demo]:
    yield Demo(
        "deer",
        "parafix.deer._demo:main",
        "a recurrent network in parallel, beside the sequential loop; JAX or PyTorch",
    )
