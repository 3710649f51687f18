"""What parafix-core itself registers."""

from collections.abc import Iterator
from typing import Final

from ._component import Component
from ._hooks import hookimpl


_BLELLOCH: Final = """\
@techreport{blelloch1990prefix,
  title = {Prefix Sums and Their Applications},
  author = {Blelloch, Guy E.},
  institution = {School of Computer Science, Carnegie Mellon University},
  number = {CMU-CS-90-190},
  year = {1990}
}"""

_SONG: Final = """\
@inproceedings{song2021accelerating,
  title = {Accelerating Feedforward Computation via Parallel Nonlinear Equation
           Solving},
  author = {Song, Yang and Meng, Chenlin and Liao, Renjie and Ermon, Stefano},
  booktitle = {Proceedings of the 38th International Conference on Machine Learning},
  series = {Proceedings of Machine Learning Research},
  volume = {139},
  pages = {9791--9800},
  year = {2021},
  eprint = {2002.03629},
  archivePrefix = {arXiv}
}"""


@hookimpl
def parafix_rootfinders() -> Iterator[Component]:
    yield Component(
        "rootfinder",
        "jacobi",
        "jax",
        "parafix.core.jax:Jacobi",
        summary="every step of a chain at once, without derivatives",
        cite=(_SONG,),
    )
    yield Component(
        "rootfinder",
        "sequential",
        "jax",
        "parafix.core.jax:Sequential",
        summary="one step after the other: JAX's own loop",
    )


@hookimpl
def parafix_scans() -> Iterator[Component]:
    yield Component(
        "scan",
        "associative",
        "jax",
        "parafix.core.jax:AssociativeScan",
        summary="linear recurrence by a parallel prefix sum, logarithmic depth",
        cite=(_BLELLOCH,),
    )
    yield Component(
        "scan",
        "blocked",
        "jax",
        "parafix.core.jax:BlockedScan",
        summary="linear recurrence in blocks: a loop within each, all blocks at once",
    )
    yield Component(
        "scan",
        "sequential",
        "jax",
        "parafix.core.jax:SequentialScan",
        summary="linear recurrence step by step",
    )


@hookimpl
def parafix_adjoints() -> Iterator[Component]:
    yield Component(
        "adjoint",
        "implicit",
        "jax",
        "parafix.core.jax:ChainAdjoint",
        summary="implicit function theorem: one reversed scan, full Jacobian",
    )
