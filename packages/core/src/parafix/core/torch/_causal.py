import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._check import checked_tolerance
from ._entries import all_finite, chosen, distance, Leaves, same
from ._iteration import bare
from ._linear import looks


@dataclasses.dataclass(frozen=True)
class AbstractCausalSweep(abc.ABC):
    """Solves `z = f(z)` where entry `i` of `f(z)` depends on entries before `i` alone.

    Subclasses, frozen dataclasses, say which iterate to try next, and nothing else. The
    loop around them evaluates `f` once for every iterate and owns all that makes the
    answer right, whatever they propose:

    - With the first `p` entries final, entry `p` of `f(z)` is final, and so is every
      later one up to the first that differs from that of `z`. That is the certified
      prefix; it grows in every sweep, and is never written again.
    - What is not finite beyond it is replaced by the guess, so that an overflow ahead
      cannot reach the prefix by way of a product with zero. Where `f` overflows inside,
      at a finite iterate, and the next entry comes out as NaN or infinite, it is not
      accepted before it has come out so with the guess in all entries ahead, which is
      what the sequential program evaluates.
    - Two sweeps that agree in all entries prove the solution.

    Every sample of a batch stops by itself, and the others change no bit of it.

    **Arguments:**

    - `rtol`, `atol`: entries are within tolerance if two sweeps differ by at most
        `atol + rtol |z|`.
    """

    rtol: float | Tensor
    atol: float | Tensor
    # Whether what it does needs numbers that can be added and scaled.
    for_floats_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checked_tolerance("rtol", self.rtol, None)
        checked_tolerance("atol", self.atol, None)

    def init_memory(self, z: Leaves) -> Any:
        """What is remembered from sweep to sweep: a tree of tensors, or `None`.

        **Arguments:**

        - `z`: leaves `(B, N, ...)`, the guess.
        """
        del z

    @abc.abstractmethod
    def propose(
        self, z: Leaves, f: Leaves, prefix: Tensor, memory: Any
    ) -> tuple[Leaves, Any]:
        """The next iterate, of which only entries from `prefix` on are taken.

        **Arguments:**

        - `z`: leaves `(B, N, ...)`, the iterate.
        - `f`: leaves `(B, N, ...)`, its image.
        - `prefix`: `(B,)`, how many entries are final after this evaluation.
        - `memory`: as left by the sweep before.

        **Returns:**

        The iterate and the memory.
        """


@dataclasses.dataclass(frozen=True)
class CausalState:
    """Where a causal solve stands; all but `z` are of shape `(B,)`."""

    z: tuple[Tensor, ...]
    prefix: Tensor
    num_steps: Tensor
    # Whether what is beyond the prefix is the guess.
    clean: Tensor
    # Of the iterate that was evaluated last, before it was rewritten; infinite where an
    # exact solve found a contradiction.
    residual: Tensor
    proven: Tensor
    close: Tensor
    contradicted: Tensor


def sweep_until(
    fn: Callable[[Leaves], Leaves],
    guess: Leaves,
    solver: AbstractCausalSweep,
    max_steps: int,
    *,
    exact: bool,
) -> CausalState:
    """Sweeps until two agree; with `exact=False`, until they do to within tolerance.

    At least one sample, one entry and one leaf. `contradicted`: an entry that was final
    has changed, so that `fn` is not causal, or not deterministic. That is looked for
    bit for bit if `exact`, and beyond tolerance if not.
    """
    guess = cleaned(guess)
    samples, length = guess[0].shape[:2]
    index = torch.arange(length, device=guess[0].device)
    z, memory = tuple(guess), solver.init_memory(guess)
    none = torch.zeros(samples, dtype=torch.int64, device=index.device)
    no = torch.zeros_like(none, dtype=torch.bool)
    unknown = torch.full_like(distance(z, z, 1.0, 1.0)[:, 0], torch.inf)
    state = CausalState(z, none, none, ~no, unknown, no, no, no)
    active = ~no
    for step in range(max_steps):
        z = state.z
        # A tensor that `f` may work on in place.
        f = fn([x.clone() for x in z])
        equal, sound = same(z, f), all_finite(f)
        final = index < state.prefix[:, None]
        changed, agreed = ~equal, final | equal
        # Where all agree there is no distance, and an exact solve that goes on has no
        # use for one: it is a fifth of what the loop costs besides `fn`.
        far = torch.where(agreed.all(1), 0, unknown)
        if not exact or step + 1 == max_steps:
            apart = distance(z, f, solver.rtol, solver.atol)
            far = torch.where(agreed, 0, apart).amax(1)
            changed = changed if exact else ~(apart <= 1)
        contradicted = (final & sound & changed).any(1)
        if not looks(step, index.device) or bool(bare(contradicted).any()):
            # A NaN in the prefix may well reach what it has no business with.
            contradicted = contradicted & all_finite(z).all(1)
        close = far <= 1
        num_steps = state.num_steps + 1
        first = torch.where(agreed, length, index).amin(1)
        accepted = state.clean | (sound | (index != first[:, None])).all(1)
        # What is returned is what was measured.
        stops = torch.zeros_like(close) if exact else close
        prefix = (first + (accepted & ~stops)).clamp(max=length)
        inside = index < prefix[:, None]
        ahead, memory = solver.propose(z, f, prefix, memory)
        # From the guess one entry at least is accepted. So after `k` sweeps there are
        # `k - 1`, and `N + 1` sweeps are enough however often one is in vain.
        clean = ~accepted | (prefix < num_steps)
        if ahead is f:
            new = chosen(inside | (sound & ~clean[:, None]), f, guess)
        else:
            ahead = chosen(all_finite(ahead) & ~clean[:, None], ahead, guess)
            new = chosen(inside, f, ahead)
        new = chosen(final | (stops | ~active)[:, None], z, new)
        found = CausalState(
            new,
            prefix,
            num_steps,
            clean,
            far,
            first == length,
            close,
            contradicted,
        )
        state = _where(active, found, state)
        ended = state.proven | state.contradicted
        active = ~(ended if exact else ended | state.close)
        if looks(step, index.device) and not bool(bare(active).any()):
            break
    return state


def _where(active, new, old):
    fields = {
        field.name: torch.where(
            active, getattr(new, field.name), getattr(old, field.name)
        )
        for field in dataclasses.fields(CausalState)
        if field.name != "z"
    }
    return CausalState(new.z, **fields)


def one_after_the_other(
    fn: Callable[[Leaves], Leaves], guess: Leaves
) -> tuple[Tensor, ...]:
    """The sequential program: one entry of `fn(z)` is accepted in every pass."""
    z = cleaned(guess)
    index = torch.arange(z[0].shape[1], device=z[0].device)
    for i in range(len(index)):
        here = (index == i).expand(z[0].shape[:2])
        z = chosen(here, fn([x.clone() for x in z]), z)
    return z


def cleaned(guess: Leaves) -> tuple[Tensor, ...]:
    """The guess with zeros for what is not finite."""
    return tuple(torch.where(torch.isfinite(x), x, torch.zeros_like(x)) for x in guess)
