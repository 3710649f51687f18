import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class CausalProblem:
    """A causal problem `fn(z, args) = z` and its answer.

    **Attributes:**

    - `name`: what [`parafix.core.testing.jax.causal_zoo`][] calls it.
    - `fn`: `(z, args) -> z`, for one sample.
    - `args`: a dictionary of arrays.
    - `z0`: the guess: zeros.
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
        found = self.loop({name: np.asarray(x) for name, x in self.args.items()})
        return jax.tree.map(lambda x, z: np.asarray(x).astype(z.dtype), found, self.z0)


def one_by_one(fn: Callable[[Any], Any], z0: Any) -> Any:
    """The sequential program: in pass `i`, entry `i` of `fn(z)` is accepted."""
    count = len(jax.tree.leaves(z0)[0])
    rows = jnp.arange(count)

    def body(i, z):
        image = lax.optimization_barrier(fn(lax.optimization_barrier(z)))

        def accept(old, new):
            here = (rows == i).reshape(-1, *[1] * (old.ndim - 1))
            return jnp.where(here, new, old)

        return jax.tree.map(accept, z, image)

    return lax.fori_loop(0, count, body, z0)


def _before(z):
    return jnp.concatenate([jnp.zeros_like(z[:1]), z[:-1]])


def _network(z, args):
    mask = np.tril(np.ones((len(z), len(z)), bool), -1)
    return jnp.tanh(jnp.where(mask, args["weights"], 0) @ z) + args["noise"]


def _network_loop(args):
    z = np.zeros_like(args["noise"])
    for i in range(len(z)):
        z[i] = np.tanh(args["weights"][i, :i] @ z[:i]) + args["noise"][i]
    return z


def _chain(z, args):
    starts = (jnp.arange(len(z)) % _LINKS == 0)[:, None]
    moved = jnp.sin(args["gain"] * _before(z))
    return jnp.where(starts, jnp.zeros_like(z), moved) + args["noise"]


def _chain_loop(args):
    z = np.zeros_like(args["noise"])
    for i in range(len(z)):
        moved = np.sin(args["gain"] * z[i - 1]) if i % _LINKS else 0
        z[i] = moved + args["noise"][i]
    return z


def _tokens(z, args):
    table = args["table"]
    new = table[jnp.arange(len(z)), (_before(z) + _before(_before(z))) % _TOKENS]
    return new.astype(z.dtype)


def _tokens_loop(args):
    z = np.zeros(len(args["table"]), np.int32)
    for i in range(len(z)):
        before = sum(z[j] for j in (i - 1, i - 2) if j >= 0)
        z[i] = args["table"][i, before % _TOKENS]
    return z


def _tree(z, args):
    wide, narrow = z["wide"], z["narrow"]
    return {
        "narrow": jnp.sin(_before(wide).sum(1).astype(narrow.dtype)),
        "wide": 0.9
        * jnp.cos(_before(wide) + _before(narrow)[:, None].astype(wide.dtype))
        + args["noise"],
    }


def _tree_loop(args):
    wide, narrow = np.zeros_like(args["noise"]), np.zeros(len(args["noise"]), "f4")
    for i in range(len(wide)):
        last, other = (wide[i - 1], narrow[i - 1]) if i else (0 * wide[0], 0.0)
        narrow[i] = np.sin(np.float32(last.sum()))
        wide[i] = 0.9 * np.cos(last + other) + args["noise"][i]
    return {"narrow": narrow, "wide": wide}


def _overflow(z, args):
    # From zero to `far` in one sweep, and back with the first entry; on the way `exp`
    # overflows, and is NaN times the zeros of the mask, in all entries.
    mask = np.tril(np.ones((len(z), len(z)), bool), -1)
    mixed = jnp.where(mask, 1e-3, jnp.zeros((), z.dtype)) @ jnp.exp(z)
    return jnp.where(jnp.arange(len(z)) == 0, 1, args["far"] * (1 - z[0])) + mixed


def _overflow_loop(args):
    z = np.ones_like(args["far"])
    for i in range(1, len(z)):
        z[i] = args["far"][i] * (1 - z[0]) + 1e-3 * np.exp(z[:i]).sum()
    return z


_LINKS, _TOKENS = 4, 7


def causal_zoo_names() -> tuple[str, ...]:
    """The names of the problems in [`parafix.core.testing.jax.causal_zoo`][]."""
    return ("network", "chain", "tokens", "tree", "overflow")


def causal_zoo(
    name: str, seed: int = 0, count: int = 13, dtype: Any = np.float64
) -> CausalProblem:
    """A seeded causal problem of one sample whose answer is known, by name.

    The numbers are those of the problem of this name in `parafix.core.testing.torch`.

    - `network`: `tanh(W z) + noise` with all weights below the diagonal, `(N, 2)`.
    - `chain`: every entry from the one before it, cut into chains of 4, `(N, 2)`.
    - `tokens`: integers, each from a table and the two before it.
    - `tree`: two leaves, `(N, 3)` of `dtype` and `(N,)` of float32.
    - `overflow`: finite, with iterates that overflow inside of `fn`.

    **Arguments:**

    - `name`: one of the above.
    - `seed`: an integer; other seeds give other numbers of the same family.
    - `count`: `N`, the number of entries.
    - `dtype`: of all floats, but for the second leaf of `tree`.
    """
    random = np.random.default_rng(seed)
    drawn = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)
    noise = lambda size: {"noise": drawn(count, size)}
    if name == "network":
        args = {"weights": drawn(count, count), **noise(2)}
        return CausalProblem(name, _network, args, 0 * args["noise"], _network_loop)
    if name == "chain":
        args = {"gain": jnp.asarray(1.5, dtype), **noise(2)}
        depth = min(_LINKS, count)
        return CausalProblem(name, _chain, args, 0 * args["noise"], _chain_loop, depth)
    if name == "tokens":
        args = {"table": jnp.asarray(random.integers(0, _TOKENS, (count, _TOKENS)))}
        z0 = jnp.zeros(count, jnp.int32)
        return CausalProblem(name, _tokens, args, z0, _tokens_loop)
    if name == "tree":
        args = noise(3)
        z0 = {"narrow": jnp.zeros(count, jnp.float32), "wide": 0 * args["noise"]}
        return CausalProblem(name, _tree, args, z0, _tree_loop)
    if name == "overflow":
        args = {"far": jnp.full(count, 800, dtype)}
        z0 = 0 * args["far"]
        return CausalProblem(name, _overflow, args, z0, _overflow_loop, reach=1.0)
    raise ValueError(f"no problem is called {name!r}; there are {causal_zoo_names()}")
