from typing import TypeAlias

import numpy as np
from jaxtyping import Complex, Float, Int
from torch import Tensor


# Shapes below use B (samples), T (time), n (state) and `*batch`.
Inexact: TypeAlias = Float[Tensor, "..."] | Complex[Tensor, "..."]
ArrayLike: TypeAlias = Tensor | np.ndarray
Codes: TypeAlias = Int[Tensor, "*batch"]
