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

_GONZALEZ: Final = """\
@inproceedings{gonzalez2024towards,
  title = {Towards Scalable and Stable Parallelization of Nonlinear {RNNs}},
  author = {Gonzalez, Xavier and Warrington, Andrew and Smith, Jimmy T. H. and
            Linderman, Scott W.},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {37},
  year = {2024},
  eprint = {2407.19115},
  archivePrefix = {arXiv}
}"""

_SARKKA: Final = """\
@article{sarkka2021temporal,
  title = {Temporal Parallelization of {Bayesian} Smoothers},
  author = {S{\\"a}rkk{\\"a}, Simo and Garc{\\'i}a-Fern{\\'a}ndez, {\\'A}ngel F.},
  journal = {IEEE Transactions on Automatic Control},
  volume = {66},
  number = {1},
  pages = {299--306},
  year = {2021}
}"""

_LINDELOF: Final = """\
@article{lindelof1894application,
  title = {Sur l'application de la m{\\'e}thode des approximations successives aux
           {\\'e}quations diff{\\'e}rentielles ordinaires du premier ordre},
  author = {Lindel{\\"o}f, Ernest},
  journal = {Comptes rendus hebdomadaires des s{\\'e}ances de l'Acad{\\'e}mie des
             sciences},
  volume = {118},
  pages = {454--457},
  year = {1894}
}"""


# name -> (class, summary, papers)
_SWEEPS: Final = {
    "deer": (
        "DEER",
        "Newton for chains: full Jacobian blocks and one scan per sweep",
        (_LIM,),
    ),
    "quasi-deer": (
        "QuasiDEER",
        "DEER with the diagonal of the Jacobian: a diagonal scan per sweep",
        (_GONZALEZ,),
    ),
    "elk": (
        "ELK",
        "DEER in a trust region, by a Kalman filter",
        (_GONZALEZ, _SARKKA),
    ),
    "quasi-elk": (
        "QuasiELK",
        "quasi-DEER in a trust region, by a diagonal Kalman filter",
        (_GONZALEZ, _SARKKA),
    ),
    "picard": (
        "Picard",
        "cumulative sums, for steps that change the state by little",
        (_LINDELOF,),
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
                f"parafix.deer.{backend}:{attribute}",
                summary=summary,
                cite=cite,
            )


@hookimpl
def parafix_demos() -> Iterator[Demo]:
    yield Demo(
        "deer",
        "parafix.deer._demo:main",
        "a recurrent network in parallel, beside the sequential loop; JAX or PyTorch",
    )
