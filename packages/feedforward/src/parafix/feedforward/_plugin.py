"""What parafix-feedforward registers."""

from collections.abc import Iterator
from typing import Final

from parafix.core import Component, hookimpl


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

_TANG: Final = """\
@inproceedings{tang2024accelerating,
  title = {Accelerating Parallel Sampling of Diffusion Models},
  author = {Tang, Zhiwei and Tang, Jiasheng and Luo, Hao and Wang, Fan and
            Chang, Tsung-Hui},
  booktitle = {Proceedings of the 41st International Conference on Machine Learning},
  year = {2024},
  eprint = {2402.09970},
  archivePrefix = {arXiv}
}"""


# name -> (class, summary, papers)
_SWEEPS: Final = {
    "jacobi-gs": (
        "JacobiGS",
        "blocks of a causal problem at once, the entries of each in order",
        (_SONG,),
    ),
    "gs-jacobi": (
        "GSJacobi",
        "blocks of a causal problem in order, or a sliding window of entries",
        (_SONG,),
    ),
    "triangular-anderson": (
        "TriangularAnderson",
        "causal iteration accelerated by the last steps, entry by entry",
        (_TANG,),
    ),
}


@hookimpl
def parafix_rootfinders() -> Iterator[Component]:
    for backend in ("jax", "torch"):
        for name, (attribute, summary, cite) in _SWEEPS.items():
            yield Component(
                "rootfinder",
                name,
                backend,
                f"parafix.feedforward.{backend}:{attribute}",
                summary=summary,
                cite=cite,
            )
