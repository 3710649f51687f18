"""`parafix.feedforward.torch.invert` beside the inverses of nflows, normflows, zuko."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..autoregressive_data import squashed_ar1
from ..harness import Answer, Case, Comparison, Contestant, Effort, Program
from ..table import faster, Table
from ..torch_programs import torch_cpu_environment, torch_cpu_program


FEATURES, SAMPLES = 784, 16
# Units in every layer: as Durkan et al. (NeurIPS 2019) have them, and more.
HIDDEN, WIDER = 256, 512
# As Papamakarios, Pavlakou and Murray train such flows (NeurIPS 2017, section 5), for a
# moment; and for longer, with larger steps.
TRAINING_SAMPLES = 100
LITTLE, LONGER = (30, 1e-4), (300, 1e-3)
OWN, OURS = "own inverse", "parafix invert"

# Steps, and the learning rate.
Training = tuple[int, float]


@dataclasses.dataclass(frozen=True)
class Flow:
    """A flow of one of the libraries.

    - `transform`: what `invert` takes.
    - `density`: from sequences to noise, and the logarithm of the determinant.
    - `inverse`: the library's own, from noise to sequences, with the same.
    - `further`: how often that calls a network for the logarithm alone.
    """

    transform: Any
    density: Callable[[Any], tuple[Any, Any]]
    inverse: Callable[[Any], tuple[Any, Any]]
    further: int = 0


def of_nflows(features: int, count: int, hidden: int) -> Flow:
    transforms = importlib.import_module("nflows.transforms")
    layers = []
    for i in range(count):
        if i:
            layers.append(transforms.ReversePermutation(features))
        layers.append(transforms.MaskedAffineAutoregressiveTransform(features, hidden))
    transform = transforms.CompositeTransform(layers)
    return Flow(transform, transform, transform.inverse)


def of_normflows(features: int, count: int, hidden: int) -> Flow:
    normflows = importlib.import_module("normflows")
    layers = []
    for i in range(count):
        if i:
            layers.append(normflows.flows.Permute(features, mode="swap"))
        layers.append(normflows.flows.MaskedAffineAutoregressive(features, hidden))
    base = normflows.distributions.DiagGaussian(features, trainable=False)
    model = normflows.NormalizingFlow(base, layers)
    return Flow(model, model.forward_and_log_det, model.inverse_and_log_det)


def of_zuko(features: int, count: int, hidden: int) -> Flow:
    zuko = importlib.import_module("zuko")
    flow = zuko.flows.MAF(features, transforms=count, hidden_features=(hidden, hidden))
    return Flow(
        flow,
        lambda x: flow.transform().call_and_ladj(x),
        lambda y: flow.transform().inv.call_and_ladj(y),
        further=1,
    )


LIBRARIES = {"nflows": of_nflows, "normflows": of_normflows, "zuko": of_zuko}


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A flow that was trained for some steps, and noise to make sequences of."""

    library: str
    features: int
    count: int = 1
    hidden: int = HIDDEN
    training: Training = LITTLE

    @functools.cached_property
    def flow(self) -> Flow:
        import torch

        torch.set_num_threads(1)
        steps, rate = self.training
        draw = np.random.default_rng(0)
        shape = steps * TRAINING_SAMPLES, self.features
        data = torch.from_numpy(squashed_ar1(draw, *shape))
        # The first to ask is a contestant that takes no gradient.
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            flow = LIBRARIES[self.library](self.features, self.count, self.hidden)
            optimiser = torch.optim.Adam(flow.transform.parameters(), rate)
            for batch in data.split(TRAINING_SAMPLES):
                noise, log_abs_det = flow.density(batch)
                # The negative logarithm of the density, but for a constant.
                loss = (noise.square().sum(1) / 2 - log_abs_det).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        flow.transform.eval()
        return flow

    @functools.cached_property
    def noise(self) -> Any:
        import torch

        draw = np.random.default_rng(1)
        values = draw.standard_normal((SAMPLES, self.features)).astype(np.float32)
        return torch.from_numpy(values)

    def own(self) -> tuple[Any, ...]:
        import torch

        with torch.no_grad():
            return self.flow.inverse(self.noise)

    def ours(self) -> tuple[Any, ...]:
        import torch

        from parafix.feedforward.torch import invert

        with torch.no_grad():
            return invert(self.flow.transform, self.noise)

    @functools.cache  # noqa: B019 (a problem lives as long as its case)
    def reference(self) -> Answer:
        return arrays(self.own())

    def program(self, name: str) -> Program:
        if name == OWN:
            evaluations = self.count * (self.features + self.flow.further)
            return torch_cpu_program(
                self.own, arrays, lambda: {"evaluations": evaluations}
            )
        return torch_cpu_program(self.ours, arrays, self.facts)

    def facts(self) -> dict[str, float | int | str]:
        from parafix.core.torch import RESULTS

        solution = self.ours()[2]
        stats = solution.stats
        return {
            "sweeps": int(stats["num_steps"].max()),
            "evaluations": int(stats["num_evals"].max()),
            "result": RESULTS(int(solution.result.max())).name,
        }


def arrays(output: tuple[Any, ...]) -> Answer:
    return {"x": output[0].numpy(), "log_abs_det": output[1].numpy()}


def cases(quick: bool) -> Iterator[Case]:
    features = FEATURES // 8 if quick else FEATURES
    longer = (10, 1e-3) if quick else LONGER
    for library in LIBRARIES:
        problem = functools.partial(Problem, library, features)
        yield _case(library, "1 transform", problem())
        yield _case(library, "3 transforms", problem(count=3))
        group = f"{library}, harder"
        yield _case(group, f"{WIDER} units", problem(hidden=WIDER))
        yield _case(group, f"{longer[0]} steps", problem(training=longer))


def _case(group, name, problem):
    missing = find_spec(problem.library) is None
    return Case(
        group,
        name,
        [
            Contestant(name, functools.partial(problem.program, name))
            for name in (OWN, OURS)
        ],
        [Comparison(OWN, OURS)],
        problem.reference,
        # The same numbers.
        limit=0.0,
        unavailable=f"{problem.library} is not installed" if missing else "",
    )


TABLE = Table(
    "Inverses of masked autoregressive flows in PyTorch",
    f"From noise to sequences, D={FEATURES}, a batch of {SAMPLES}, float32, no_grad, "
    "one thread. Affine transforms, with permutations between them (in zuko by the "
    f"order of the masks), {HIDDEN} units in every layer of the networks, in a harder "
    f"case {WIDER}, and otherwise what the library takes by default. Trained by Adam "
    f"on batches of {TRAINING_SAMPLES} sequences (the hyperbolic tangent of an "
    "autoregressive process of first order, drawn by NumPy), for {} steps at a "
    "learning rate of {}, in a harder case {} at {}. ".format(*LITTLE, *LONGER)
    + "The reference is the library's own inverse, called once more, and the limit is "
    "zero: the same numbers. Evaluations are calls of networks, those of the slowest "
    "sample.",
    cases,
    [
        faster("nflows", OWN, OURS, 30),
        faster("normflows", OWN, OURS, 30),
        faster("zuko", OWN, OURS, 40),
    ],
    torch_cpu_environment,
    Effort(repeats=5, patience=1),
)
