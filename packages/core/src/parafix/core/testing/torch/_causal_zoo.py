import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class CausalProblem:
    """A causal problem `fn(z, args) = z` and its answer.

    **Attributes:**

    - `name`: what [`parafix.core.testing.torch.causal_zoo`][] calls it.
    - `fn`: `(z, args) -> z`, sample by sample.
    - `args`: a dictionary of tensors, each with the samples on its first axis.
    - `z0`: the guess: zeros, with one sample.
    - `loop`: `args -> z` in NumPy, one entry after the other, for arrays like `args`.
    - `depth`: how many entries are on the longest path of dependences, if known.
    - `reach`: guesses up to this size do not make `fn` overflow.
    """

    name: str
    fn: Callable[[Any, Any], Any]
    args: dict[str, Any]
    z0: Any
    loop: Callable[[Any], Any]
    depth: int | None = None
    reach: float = 1e4

    @property
    def solution(self) -> Any:
        """The answer, in the structure and the dtypes of `z0`."""
        found = self.loop({name: x.detach().numpy() for name, x in self.args.items()})
        return pytree.tree_map(lambda x, z: torch.as_tensor(x).to(z), found, self.z0)


def one_by_one(fn: Callable[[Any], Any], z0: Any) -> Any:
    """The sequential program: in pass `i`, entry `i` of `fn(z)` is accepted."""
    z = pytree.tree_map(torch.clone, z0)
    for i in range(pytree.tree_leaves(z)[0].shape[1]):
        image = fn(z)
        z = pytree.tree_map(torch.clone, z)
        pairs = zip(pytree.tree_leaves(z), pytree.tree_leaves(image), strict=True)
        for old, new in pairs:
            old[:, i] = new[:, i]
    return z


def _before(z):
    return torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)


def _mask(z):
    return torch.ones(z.shape[1], z.shape[1], dtype=torch.bool).tril(-1)


def _network(z, args):
    return torch.tanh(torch.where(_mask(z), args["weights"], 0) @ z) + args["noise"]


def _network_loop(args):
    z = np.zeros_like(args["noise"])
    for i in range(z.shape[1]):
        moved = args["weights"][:, i : i + 1, :i] @ z[:, :i]
        z[:, i] = np.tanh(moved[:, 0]) + args["noise"][:, i]
    return z


def _chain(z, args):
    starts = (torch.arange(z.shape[1]) % _LINKS == 0)[:, None]
    moved = torch.sin(args["gain"][:, None, None] * _before(z))
    return torch.where(starts, 0, moved) + args["noise"]


def _chain_loop(args):
    z = np.zeros_like(args["noise"])
    for i in range(z.shape[1]):
        moved = np.sin(args["gain"][:, None] * z[:, i - 1]) if i % _LINKS else 0
        z[:, i] = moved + args["noise"][:, i]
    return z


def _tokens(z, args):
    places = ((_before(z) + _before(_before(z))) % _TOKENS)[..., None].long()
    return args["table"].gather(2, places)[..., 0].to(z.dtype)


def _tokens_loop(args):
    table = args["table"]
    z = np.zeros(table.shape[:2], np.int32)
    for sample, i in np.ndindex(*z.shape):
        before = sum(z[sample, j] for j in (i - 1, i - 2) if j >= 0)
        z[sample, i] = table[sample, i, before % _TOKENS]
    return z


def _tree(z, args):
    narrow, wide = z
    last, other = _before(wide), _before(narrow)[:, :, None].to(wide.dtype)
    return (
        torch.sin(last.sum(2).to(narrow.dtype)),
        0.9 * torch.cos(last + other) + args["noise"],
    )


def _tree_loop(args):
    wide, narrow = np.zeros_like(args["noise"]), np.zeros(args["noise"].shape[:2], "f4")
    for i in range(wide.shape[1]):
        last = wide[:, i - 1] if i else 0 * wide[:, 0]
        other = narrow[:, i - 1] if i else 0 * narrow[:, 0]
        narrow[:, i] = np.sin(last.sum(1).astype("f4"))
        wide[:, i] = 0.9 * np.cos(last + other[:, None]) + args["noise"][:, i]
    return narrow, wide


def _overflow(z, args):
    # From zero to `far` in one sweep, and back with the first entry; on the way `exp`
    # overflows, and is NaN times the zeros of the mask, in all entries.
    mixed = torch.exp(z) @ (1e-3 * _mask(z).to(z.dtype)).T
    first = torch.arange(z.shape[1]) == 0
    return torch.where(first, 1, args["far"] * (1 - z[:, :1])) + mixed


def _overflow_loop(args):
    z = np.ones_like(args["far"])
    for i in range(1, z.shape[1]):
        mixed = 1e-3 * np.exp(z[:, :i]).sum(1)
        z[:, i] = args["far"][:, i] * (1 - z[:, 0]) + mixed
    return z


_LINKS, _TOKENS = 4, 7


def causal_zoo_names() -> tuple[str, ...]:
    """The names of the problems in [`parafix.core.testing.torch.causal_zoo`][]."""
    return ("network", "chain", "tokens", "tree", "overflow")


def causal_zoo(
    name: str, seed: int = 0, count: int = 13, dtype: torch.dtype = torch.float64
) -> CausalProblem:
    """A seeded causal problem of one sample whose answer is known, by name.

    The numbers are those of the problem of this name in `parafix.core.testing.jax`.

    - `network`: `tanh(W z) + noise` with all weights below the diagonal, `(N, 2)`.
    - `chain`: every entry from the one before it, cut into chains of 4, `(N, 2)`.
    - `tokens`: integers, each from a table and the two before it.
    - `tree`: two leaves, `(N,)` of float32 and `(N, 3)` of `dtype`.
    - `overflow`: finite, with iterates that overflow inside of `fn`.

    **Arguments:**

    - `name`: one of the above.
    - `seed`: an integer; other seeds give other numbers of the same family.
    - `count`: `N`, the number of entries.
    - `dtype`: of all floats, but for the first leaf of `tree`.
    """
    random = np.random.default_rng(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.as_tensor(random.normal(size=shape), dtype=dtype)[None]

    noise = lambda size: {"noise": drawn(count, size)}
    if name == "network":
        args = {"weights": drawn(count, count), **noise(2)}
        return CausalProblem(name, _network, args, 0 * args["noise"], _network_loop)
    if name == "chain":
        args = {"gain": torch.tensor([1.5], dtype=dtype), **noise(2)}
        depth = min(_LINKS, count)
        return CausalProblem(name, _chain, args, 0 * args["noise"], _chain_loop, depth)
    if name == "tokens":
        table = random.integers(0, _TOKENS, (count, _TOKENS))
        args = {"table": torch.as_tensor(table)[None]}
        z0 = torch.zeros(1, count, dtype=torch.int32)
        return CausalProblem(name, _tokens, args, z0, _tokens_loop)
    if name == "tree":
        args = noise(3)
        z0 = (torch.zeros(1, count), 0 * args["noise"])
        return CausalProblem(name, _tree, args, z0, _tree_loop)
    if name == "overflow":
        args = {"far": torch.full((1, count), 800, dtype=dtype)}
        z0 = 0 * args["far"]
        return CausalProblem(name, _overflow, args, z0, _overflow_loop, reach=1.0)
    raise ValueError(f"no problem is called {name!r}; there are {causal_zoo_names()}")
