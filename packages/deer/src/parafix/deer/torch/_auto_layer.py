from typing import NamedTuple


# Microseconds of a step of PyTorch's kernel: forward, and with its backward pass.
_STEP = {
    "cpu": {
        "RNN_TANH": (2.8, 20.0),
        "RNN_RELU": (2.8, 20.0),
        "GRU": (7.0, 60.0),
        "LSTM": (7.0, 60.0),
    },
    "cuda": dict.fromkeys(("RNN_TANH", "RNN_RELU", "GRU", "LSTM"), (3.0, 9.0)),
}
# Microseconds of a sweep, and of each sample and time in it, by `n` and by `n^2`.
_SWEEP = {"cpu": (700.0, 0.05, 0.004), "cuda": (700.0, 0.0, 0.0002)}
# Of several samples the blocks of a time are copied before they are multiplied.
_COPIED = 2
# A solve takes 4 to 6 sweeps where a network forgets, and a backward pass costs some 3.
_FEWEST, _BACKWARD, _MOST = 9, 3, 64


class LayerChoice(NamedTuple):
    """What `solver="auto"` of a layer takes, and the reason in a sentence.

    - `solver`: `"deer"`, or `"sequential"` for the kernel of PyTorch.
    - `max_steps`: the sweeps after which the solve is given up for the kernel.
    """

    solver: str
    reason: str
    max_steps: int | None = None


def choose_layer(
    mode: str,
    length: int,
    batch: int,
    size: int,
    *,
    gradient: bool,
    platform: str,
    fused: bool = False,
) -> LayerChoice:
    """What `solver="auto"` takes for a layer of `RNN`, `GRU` or `LSTM`.

    The kernel of PyTorch costs microseconds for each time, whatever the size; a sweep
    costs by the numbers that it has to move. DEER is taken if the kernel lasts as long
    as 9 sweeps, and 3 more for a backward pass. It is given up for the kernel when that
    would have been done.

    The constants were measured on one thread of a CPU, in float32, with 4 to 5 sweeps
    to a solve; they are cautious, the more so with several samples. For a GPU they are
    estimates from the number of operations: nothing has been measured there.

    **Arguments:**

    - `mode`: that of a module of `torch.nn`: `"GRU"`, `"LSTM"`, `"RNN_TANH"`, ...
    - `length`, `batch`: `T` and `B`.
    - `size`: `n`, how many numbers a state has; of an LSTM `h` and `c` together.
    - `gradient`: whether there may be a backward pass.
    - `platform`: the type of the device: `"cpu"`, `"cuda"`, ...
    - `fused`: whether PyTorch has a kernel for the whole sequence, not for a step.

    **Returns:**

    A [`parafix.deer.torch.LayerChoice`][].
    """
    if fused:
        return LayerChoice(
            "sequential", "on this device PyTorch runs the whole sequence in one call"
        )
    place = "cpu" if platform == "cpu" else "cuda"
    kernel = length * _STEP[place][mode][1 if gradient else 0]
    fixed, by_row, by_block = _SWEEP[place]
    times = length * batch * (1 if batch == 1 else _COPIED)
    sweep = fixed + times * (by_row * size + by_block * size**2)
    worth, backward = int(kernel / sweep), _BACKWARD if gradient else 0
    words = (
        f"the kernel takes as long as about {worth} sweeps over {length} times of "
        f"{batch} x {size} numbers"
    )
    fewest = _FEWEST + backward
    if worth < fewest:
        return LayerChoice("sequential", f"{words}, fewer than {fewest}")
    return LayerChoice("deer", words, min(worth - backward, _MOST))
