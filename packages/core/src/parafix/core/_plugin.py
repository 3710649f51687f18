"""What parafix-core itself registers."""

from collections.abc import Iterable, Iterator
from typing import Final

from ._component import BACKENDS, Component, Kind
from ._hooks import hookimpl


_BLELLOCH: Final = """\
@techreport{blelloch1990prefix,
  title = {Prefix Sums and Their Applications},
  author = {Blelloch, Guy E.},
  institution = {School of Computer Science, Carnegie Mellon University},
  number = {CMU-CS-90-190},
  year = {1990}
}"""

_MERRILL: Final = """\
@techreport{merrill2016single,
  title = {Single-Pass Parallel Prefix Scan with Decoupled Look-Back},
  author = {Merrill, Duane and Garland, Michael},
  institution = {NVIDIA},
  number = {NVR-2016-002},
  year = {2016}
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


_WALKER: Final = """\
@article{walker2011anderson,
  title = {Anderson Acceleration for Fixed-Point Iterations},
  author = {Walker, Homer F. and Ni, Peng},
  journal = {SIAM Journal on Numerical Analysis},
  volume = {49},
  number = {4},
  pages = {1715--1735},
  year = {2011},
  doi = {10.1137/10078356X}
}"""

_BROYDEN: Final = """\
@article{broyden1965class,
  title = {A Class of Methods for Solving Nonlinear Simultaneous Equations},
  author = {Broyden, C. G.},
  journal = {Mathematics of Computation},
  volume = {19},
  number = {92},
  pages = {577--593},
  year = {1965},
  doi = {10.1090/S0025-5718-1965-0198670-6}
}"""

_EISENSTAT: Final = """\
@article{eisenstat1996choosing,
  title = {Choosing the Forcing Terms in an Inexact {N}ewton Method},
  author = {Eisenstat, Stanley C. and Walker, Homer F.},
  journal = {SIAM Journal on Scientific Computing},
  volume = {17},
  number = {1},
  pages = {16--32},
  year = {1996},
  doi = {10.1137/0917003}
}"""

_FUNG: Final = """\
@inproceedings{fung2022jfb,
  title = {{JFB}: {J}acobian-Free Backpropagation for Implicit Networks},
  author = {Fung, Samy Wu and Heaton, Howard and Li, Qiuwei and McKenzie, Daniel and
            Osher, Stanley and Yin, Wotao},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume = {36},
  pages = {6648--6656},
  year = {2022}
}"""

_GENG: Final = """\
@inproceedings{geng2021training,
  title = {On Training Implicit Models},
  author = {Geng, Zhengyang and Zhang, Xin-Yu and Bai, Shaojie and Wang, Yisen and
            Lin, Zhouchen},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {34},
  year = {2021}
}"""

_OPTIMISTIX: Final = """\
@article{rader2024optimistix,
  title = {Optimistix: modular optimisation in {JAX} and {E}quinox},
  author = {Rader, Jason and Lyons, Terry and Kidger, Patrick},
  journal = {arXiv:2402.09983},
  year = {2024}
}"""

# In both backends: name, target, summary, what to cite.
_DENSE: Final = (
    ("fixed-point", "FixedPoint", "plain iteration, damped if asked for", ()),
    ("anderson", "Anderson", "iteration accelerated by the last steps", (_WALKER,)),
    ("broyden", "Broyden", "the inverse Jacobian learnt on the way", (_BROYDEN,)),
    ("newton", "Newton", "Newton's method with a direct linear solve", ()),
    (
        "newton-krylov",
        "NewtonKrylov",
        "Newton's method by GMRES, without a matrix",
        (_EISENSTAT,),
    ),
)
_CHAINS: Final = (
    (
        "jacobi",
        "Jacobi",
        "every step of a chain at once, without derivatives",
        (_SONG,),
    ),
    (
        "sequential",
        "Sequential",
        "one step after the other: the framework's own loop",
        (),
    ),
)
_SCANS: Final = (
    (
        "associative",
        "AssociativeScan",
        "linear recurrence by a parallel prefix sum, logarithmic depth",
        (_BLELLOCH,),
    ),
    (
        "blocked",
        "BlockedScan",
        "linear recurrence in blocks: a loop within each, all blocks at once",
        (),
    ),
    ("sequential", "SequentialScan", "linear recurrence step by step", ()),
    (
        "triton",
        "TritonScan",
        "linear recurrence with diagonal matrices by a GPU kernel, in one pass",
        (_MERRILL,),
    ),
)
_ADJOINTS: Final = (
    (
        "implicit",
        "ImplicitAdjoint",
        "implicit function theorem: the gradient, whatever the solver did",
        (),
    ),
    (
        "one-step",
        "OneStepAdjoint",
        "differentiates one application of the function: no linear solve",
        (_FUNG,),
    ),
    (
        "phantom",
        "PhantomAdjoint",
        "differentiates some damped steps from the solution",
        (_GENG,),
    ),
    (
        "unrolled",
        "UnrolledAdjoint",
        "differentiates the solver's own steps",
        (),
    ),
)
_OF_OPTIMISTIX: Final = (
    ("chord", "Chord", "Newton's method with the first Jacobian throughout"),
    ("dogleg", "Dogleg", "Gauss-Newton with a trust region"),
    ("levenberg-marquardt", "LevenbergMarquardt", "damped Gauss-Newton"),
    ("gauss-newton", "GaussNewton", "Gauss-Newton with a line search"),
    ("bfgs", "BFGS", "quasi-Newton on half the squared residual"),
)


@hookimpl
def parafix_rootfinders() -> Iterator[Component]:
    yield from _in_both_backends("rootfinder", (*_DENSE, *_CHAINS))
    for name, target, summary in _OF_OPTIMISTIX:
        yield Component(
            "rootfinder",
            name,
            "jax",
            f"optimistix:{target}",
            summary=f"{summary} (of Optimistix)",
            cite=(_OPTIMISTIX,),
        )


@hookimpl
def parafix_scans() -> Iterator[Component]:
    yield from _in_both_backends("scan", _SCANS)


@hookimpl
def parafix_adjoints() -> Iterator[Component]:
    yield from _in_both_backends("adjoint", _ADJOINTS)


def _in_both_backends(
    kind: Kind, described: Iterable[tuple[str, str, str, tuple[str, ...]]]
) -> Iterator[Component]:
    for name, target, summary, cite in described:
        for backend in BACKENDS:
            path = f"parafix.core.{backend}:{target}"
            yield Component(kind, name, backend, path, summary=summary, cite=cite)
