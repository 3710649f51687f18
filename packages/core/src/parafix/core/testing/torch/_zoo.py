import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.utils._pytree as pytree

from ._dense_oracle import affine, affine_tree, dense_solution, tanh_layer


Kind = Literal["contractive", "expansive", "hopeless", "batch"]


@dataclasses.dataclass(frozen=True)
class DenseProblem:
    """A fixed-point problem `fn(y, args) = y` and its answer.

    Problems of one family share `fn`, so that they can be samples of one batch.

    **Attributes:**

    - `name`: what [`parafix.core.testing.torch.zoo`][] calls it.
    - `fn`: `(y, args) -> y`, sample by sample.
    - `args`: a tree of tensors, each with the samples on its first axis.
    - `y0`: the guess, a tensor `(B, ...)` or a tuple of them.
    - `solution`: the answer in the structure and the dtypes of `y0`, as NumPy arrays;
        `None` where there is none.
    - `kind`: `"contractive"` if plain iteration converges, `"expansive"` if it grows,
        `"hopeless"` if no solver can succeed, `"batch"` if there may be several
        samples; there is one otherwise.
    """

    name: str
    fn: Callable[[Any, Any], Any]
    args: Any
    y0: Any
    solution: Any
    kind: Kind

    def scaled(self, scale: float) -> "DenseProblem":
        """The same problem in other units: `z -> s f(z / s)`."""
        leaf = self.y0[0] if isinstance(self.y0, tuple) else self.y0
        scales = torch.full((len(leaf),), scale, dtype=torch.float64)
        solution = self.solution
        if solution is not None:
            solution = pytree.tree_map(lambda x: (x * scale).astype(x.dtype), solution)
        return dataclasses.replace(
            self,
            name=f"{self.name} times {scale:g}",
            fn=_Scaled(self.fn),
            args={"scale": scales, "args": self.args},
            y0=pytree.tree_map(lambda x: x * scale, self.y0),
            solution=solution,
        )

    def as_root(self) -> "DenseProblem":
        """The same answer as a root: `fn` is `y - fn(y, args)`, of the same type."""
        return dataclasses.replace(self, name=f"root of {self.name}", fn=_Root(self.fn))

    def residual(self, y: Any, rtol: float, atol: float) -> float:
        """`max |f(y) - y| / (atol + rtol |y|)` by NumPy; infinite where undefined.

        Of all samples.
        """
        ratios = [0.0]
        y = pytree.tree_map(torch.as_tensor, y)
        image = pytree.tree_leaves(self.fn(y, self.args))
        for f, z in zip(image, pytree.tree_leaves(y), strict=True):
            f, z = (np.asarray(x.detach(), np.float64) for x in (f, z))
            if not (np.isfinite(f).all() and np.isfinite(z).all()):
                return float("inf")
            ratios.append(float(np.max(abs(f - z) / (atol + rtol * abs(z)), initial=0)))
        return max(ratios)


@dataclasses.dataclass(frozen=True)
class _Scaled:
    fn: Callable[[Any, Any], Any]

    def __call__(self, y, args):
        def times(tree, scale):
            def one(x):
                return x * scale.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)

            return pytree.tree_map(one, tree)

        y = times(y, 1 / args["scale"])
        return times(self.fn(y, args["args"]), args["scale"])


@dataclasses.dataclass(frozen=True)
class _Root:
    fn: Callable[[Any, Any], Any]

    def __call__(self, y, args):
        return pytree.tree_map(lambda z, f: z - f, y, self.fn(y, args))


def _logarithm(y, args):
    return torch.log(y) + args["offset"]


def _square(y, args):
    return y + y**2 + args["offset"]


def _orthonormal(random, size):
    q, r = np.linalg.qr(random.normal(size=(size, size)))
    return q * np.sign(np.diag(r))


def _symmetric(low, high):
    def matrix(random, size):
        # Both ends belong to the spectrum: they decide how hard the problem is.
        spectrum = random.uniform(low, high, size)
        spectrum[: min(2, size)] = (low, high)[: min(2, size)]
        basis = _orthonormal(random, size)
        return (basis * spectrum) @ basis.T

    return matrix


def _orthogonal(random, size):
    return 0.95 * _orthonormal(random, size)


def _rotations(random, size):
    # Eigenvalues around the circle, but no angle below 0.5: away from one, where
    # `I - M` is nearly singular.
    matrix = np.eye(size)
    for i in range(0, size - 1, 2):
        angle = random.uniform(0.5, np.pi)
        c, s = np.cos(angle), np.sin(angle)
        matrix[i : i + 2, i : i + 2] = [[c, -s], [s, c]]
    basis = _orthonormal(random, size)
    return 0.95 * basis @ matrix @ basis.T


def _gaussian(gain):
    def matrix(random, size):
        return gain * random.normal(size=(size, size)) / size**0.5

    return matrix


def _radius(radius):
    def matrix(random, size):
        matrix = random.normal(size=(size, size))
        return radius * matrix / max(abs(np.linalg.eigvals(matrix)))

    return matrix


def _doubling(random, size):
    del random
    return 2 * np.eye(size)


def _sample(x, dtype):
    return torch.as_tensor(x, dtype=dtype)[None]


def _rounded(x, like):
    """A NumPy array with the shape and the dtype of a tensor."""
    return torch.as_tensor(x).to(like.dtype).reshape(like.shape).numpy()


def _known(fn, matrix):
    def make(name, kind, seed, size, dtype):
        random = np.random.default_rng(seed)
        args = {
            "matrix": _sample(matrix(random, size), dtype),
            "offset": _sample(random.normal(size=size), dtype),
        }
        y0 = torch.zeros(1, size, dtype=dtype)
        # The answer to the problem as it was rounded to `dtype`.
        solution = _rounded(dense_solution(fn, args), y0)
        return DenseProblem(name, fn, args, y0, solution, kind)

    return make


def _hopeless(fn, guess, offset):
    def make(name, kind, seed, size, dtype):
        random = np.random.default_rng(seed)
        y0 = _sample(guess + 0.1 * random.uniform(size=size), dtype)
        args = {"offset": torch.full_like(y0, offset)}
        return DenseProblem(name, fn, args, y0, None, kind)

    return make


def _tree(*, mixed):
    def make(name, kind, seed, size, dtype):
        del size
        random = np.random.default_rng(seed)
        y0 = (
            torch.zeros(1, 2, 3, dtype=dtype),
            torch.zeros(1, dtype=dtype),
            torch.zeros(1, 4, dtype=torch.float32 if mixed else dtype),
        )
        args = {
            "matrix": _sample(_symmetric(-0.5, 0.5)(random, 11), dtype),
            "offset": _sample(random.normal(size=11), dtype),
        }
        parts = np.split(dense_solution(affine, args), (6, 7), axis=1)
        solution = tuple(_rounded(x, y) for x, y in zip(parts, y0, strict=True))
        return DenseProblem(name, affine_tree, args, y0, solution, kind)

    return make


# How each is made from its name, its kind, a seed, a size and a dtype.
_MAKERS: dict[str, tuple[Kind, Callable[..., DenseProblem]]] = {
    "easy": ("contractive", _known(affine, _symmetric(-0.1, 0.1))),
    "symmetric": ("contractive", _known(affine, _symmetric(-0.9, 0.9))),
    "orthogonal": ("contractive", _known(affine, _orthogonal)),
    "rotations": ("contractive", _known(affine, _rotations)),
    "tanh": ("contractive", _known(tanh_layer, _gaussian(1.1))),
    "tree": ("contractive", _tree(mixed=False)),
    "mixed-tree": ("contractive", _tree(mixed=True)),
    "wide": ("expansive", _known(affine, _symmetric(-3, 0.5))),
    "radius-3": ("expansive", _known(affine, _radius(3))),
    "doubling": ("expansive", _known(affine, _doubling)),
    "becomes-nan": ("hopeless", _hopeless(_logarithm, 2.0, 0.0)),
    "nan-at-guess": ("hopeless", _hopeless(_logarithm, -1.0, 0.0)),
    "no-solution": ("hopeless", _hopeless(_square, 1.0, 1.0)),
}


def zoo_names(*kinds: Kind) -> tuple[str, ...]:
    """The names of the problems of these kinds; of all if none is given."""
    return tuple(
        name for name, (kind, _) in _MAKERS.items() if not kinds or kind in kinds
    )


def zoo(
    name: str, seed: int = 0, size: int = 50, dtype: torch.dtype = torch.float64
) -> DenseProblem:
    """A seeded problem of one sample whose answer is known, by name.

    The numbers are those of the problem of this name in `parafix.core.testing.jax`.

    Contractive, plain iteration converges:

    - `easy`, `symmetric`: linear, symmetric, spectrum in [-.1, .1] and in [-.9, .9].
    - `orthogonal`: linear, .95 times a random orthogonal matrix.
    - `rotations`: linear, .95 times rotations of planes by angles from .5 to pi.
    - `tanh`: `tanh(W z + b)`, the entries of `W` of deviation `1.1 / sqrt(n)`.
    - `tree`, `mixed-tree`: linear, on a tuple of tensors; the second has leaves
        of `dtype` and of float32.

    Expansive, plain iteration grows:

    - `wide`: linear, symmetric, spectrum in [-3, .5].
    - `radius-3`: linear, not symmetric, spectral radius 3.
    - `doubling`: `2 z + b`.

    Hopeless, there is no answer:

    - `becomes-nan`: `log z` from a guess near 2, undefined after a few steps.
    - `nan-at-guess`: `log z` from a negative guess.
    - `no-solution`: `z + z^2 + 1`.

    **Arguments:**

    - `name`: one of the above.
    - `seed`: an integer; other seeds give other numbers of the same family.
    - `size`: `n`, the number of entries. Trees have 11 whatever it is.
    - `dtype`: of all tensors.
    """
    if name not in _MAKERS:
        raise ValueError(f"no problem is called {name!r}; there are {zoo_names()}")
    kind, make = _MAKERS[name]
    return make(name, kind, seed, size, dtype)


def stacked(problems: Sequence[DenseProblem]) -> DenseProblem:
    """Several problems of one `fn` and equal shapes as the samples of one batch.

    A sample without an answer has NaN for its `solution`.
    """
    if len({problem.fn for problem in problems}) != 1:
        raise ValueError("the problems of a batch must have the same `fn`")

    def answer(problem):
        if problem.solution is not None:
            return problem.solution
        return pytree.tree_map(lambda x: np.full_like(x.numpy(), np.nan), problem.y0)

    args, y0 = (
        pytree.tree_map(lambda *x: torch.cat(x), *[getattr(p, name) for p in problems])
        for name in ("args", "y0")
    )
    solution = pytree.tree_map(lambda *x: np.concatenate(x), *map(answer, problems))
    name = ", ".join(problem.name for problem in problems)
    return DenseProblem(name, problems[0].fn, args, y0, solution, "batch")
