"""Names that released distributions register, for those who have not installed them.

A name that nobody has installed gets an answer that says what to install. A test holds
both tables against every plugin that is installed.
"""

from typing import Final


# (kind, name, backend) -> distribution. Aliases have lines of their own.
KNOWN: Final[dict[tuple[str, str, str], str]] = {
    ("rootfinder", "anderson", "jax"): "parafix-core",
    ("rootfinder", "anderson", "torch"): "parafix-core",
    ("rootfinder", "bfgs", "jax"): "parafix-core",
    ("rootfinder", "broyden", "jax"): "parafix-core",
    ("rootfinder", "broyden", "torch"): "parafix-core",
    ("rootfinder", "chord", "jax"): "parafix-core",
    ("rootfinder", "deer", "jax"): "parafix-deer",
    ("rootfinder", "deer", "torch"): "parafix-deer",
    ("rootfinder", "dogleg", "jax"): "parafix-core",
    ("rootfinder", "elk", "jax"): "parafix-deer",
    ("rootfinder", "elk", "torch"): "parafix-deer",
    ("rootfinder", "fixed-point", "jax"): "parafix-core",
    ("rootfinder", "fixed-point", "torch"): "parafix-core",
    ("rootfinder", "gauss-newton", "jax"): "parafix-core",
    ("rootfinder", "gs-jacobi", "jax"): "parafix-feedforward",
    ("rootfinder", "gs-jacobi", "torch"): "parafix-feedforward",
    ("rootfinder", "jacobi", "jax"): "parafix-core",
    ("rootfinder", "jacobi", "torch"): "parafix-core",
    ("rootfinder", "jacobi-gs", "jax"): "parafix-feedforward",
    ("rootfinder", "jacobi-gs", "torch"): "parafix-feedforward",
    ("rootfinder", "levenberg-marquardt", "jax"): "parafix-core",
    ("rootfinder", "newton", "jax"): "parafix-core",
    ("rootfinder", "newton", "torch"): "parafix-core",
    ("rootfinder", "newton-krylov", "jax"): "parafix-core",
    ("rootfinder", "newton-krylov", "torch"): "parafix-core",
    ("rootfinder", "picard", "jax"): "parafix-deer",
    ("rootfinder", "picard", "torch"): "parafix-deer",
    ("rootfinder", "quasi-deer", "jax"): "parafix-deer",
    ("rootfinder", "quasi-deer", "torch"): "parafix-deer",
    ("rootfinder", "quasi-elk", "jax"): "parafix-deer",
    ("rootfinder", "quasi-elk", "torch"): "parafix-deer",
    ("rootfinder", "sequential", "jax"): "parafix-core",
    ("rootfinder", "sequential", "torch"): "parafix-core",
    ("rootfinder", "triangular-anderson", "jax"): "parafix-feedforward",
    ("rootfinder", "triangular-anderson", "torch"): "parafix-feedforward",
    ("scan", "associative", "jax"): "parafix-core",
    ("scan", "associative", "torch"): "parafix-core",
    ("scan", "blocked", "jax"): "parafix-core",
    ("scan", "blocked", "torch"): "parafix-core",
    ("scan", "sequential", "jax"): "parafix-core",
    ("scan", "sequential", "torch"): "parafix-core",
    ("scan", "triton", "jax"): "parafix-core",
    ("scan", "triton", "torch"): "parafix-core",
    ("adjoint", "implicit", "jax"): "parafix-core",
    ("adjoint", "implicit", "torch"): "parafix-core",
    ("adjoint", "one-step", "jax"): "parafix-core",
    ("adjoint", "one-step", "torch"): "parafix-core",
    ("adjoint", "phantom", "jax"): "parafix-core",
    ("adjoint", "phantom", "torch"): "parafix-core",
    ("adjoint", "unrolled", "jax"): "parafix-core",
    ("adjoint", "unrolled", "torch"): "parafix-core",
}

# name -> (distribution, the extras that the demo needs)
KNOWN_DEMOS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "deer": ("parafix-deer", ("jax", "demo")),
}
