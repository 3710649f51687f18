"""How long which network is trained, and on what."""

import dataclasses


ABOUT = """\
Trains a Hamiltonian neural network on the motion of two bodies that attract each other:
its ordinary differential equation is solved from the first state of a trajectory, and
what comes out is compared with the trajectory, first over a short time and then over a
longer one. Solved by Diffrax's steps one after the other, by DEER, and by DEER that
starts from the trajectories of the epoch before. All start from the same weights and
take the same batches, in turns, so only the time differs. A fourth one, sequential,
starts one rounding away: so far apart do equal trainings drift. Double precision."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One training.

    - `train`, `test`: how many trajectories there are, each with masses of 1.
    - `end`, `points`: their time span, and the number of steps on it.
    - `hidden`, `layers`: units and hidden layers of the network, softplus between them.
    - `stages`: the loss is that of so many first points, one stage after the other.
    - `epochs`: in each stage.
    - `batch`: trajectories in a step.
    - `rate`: of Adam.
    - `seeds`: how many draws of weights and batches.
    - `sweeps`: at most; what is not solved by then, a loop finishes.
    """

    train: int
    test: int
    end: float
    points: int
    hidden: int
    layers: int
    stages: tuple[int, ...]
    epochs: int
    batch: int
    rate: float
    seeds: int
    sweeps: int = 50


CONFIGS = {
    "tiny": Config(4, 2, 1.0, 40, 4, 1, (20, 40), 1, 2, 1e-3, 1),
    "quick": Config(
        *(64, 16, 10.0, 1_000, 32, 2),
        (100, 300, 1_000),
        *(20, 16, 5e-3, 1),
    ),
    "full": Config(
        *(800, 100, 10.0, 10_000, 64, 6),
        tuple(range(1_000, 11_000, 1_000)),
        *(50, 16, 1e-3, 3),
    ),
}
