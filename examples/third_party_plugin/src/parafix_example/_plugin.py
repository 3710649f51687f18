from parafix.core import Component, hookimpl


IRONS = """\
@article{irons1969version,
  title = {A Version of the {Aitken} Accelerator for Computer Iteration},
  author = {Irons, Bruce M. and Tuck, Robert C.},
  journal = {International Journal for Numerical Methods in Engineering},
  volume = {1},
  number = {3},
  pages = {275--277},
  year = {1969}
}"""

KOGGE = """\
@article{kogge1973parallel,
  title = {A Parallel Algorithm for the Efficient Solution of a General Class of
           Recurrence Equations},
  author = {Kogge, Peter M. and Stone, Harold S.},
  journal = {IEEE Transactions on Computers},
  volume = {C-22},
  number = {8},
  pages = {786--793},
  year = {1973}
}"""


@hookimpl
def parafix_rootfinders():
    yield Component(
        "rootfinder",
        "aitken",
        "jax",
        "parafix_example.aitken:Aitken",
        summary="damping that adapts itself, with the memory of one vector",
        cite=(IRONS,),
    )


@hookimpl
def parafix_scans():
    yield Component(
        "scan",
        "doubling",
        "jax",
        "parafix_example.doubling:DoublingScan",
        summary="linear recurrence by recursive doubling: few stages, more work",
        cite=(KOGGE,),
    )
