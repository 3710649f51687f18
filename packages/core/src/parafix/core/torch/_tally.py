import torch
from torch import Tensor

from ._result import RESULTS


class Tally:
    """Which samples go on, and what became of the others; all of shape `(B,)`.

    **Attributes:**

    - `active`: whether a sample goes on; from the start on, those with a finite guess.
    - `result`: how the others have ended.
    - `num_steps`: after how many steps they have.
    """

    def __init__(self, active: Tensor):
        self.active = active
        codes = RESULTS.max_steps_reached, RESULTS.nonfinite
        self.result = torch.where(active, *codes)
        self.num_steps = torch.zeros_like(self.result)

    def end(self, flags: Tensor, codes: Tensor, num_steps: int) -> None:
        """Samples with a flag, of those that go on, end with these codes."""
        self.result = torch.where(flags, codes, self.result)
        self.num_steps = torch.where(flags, num_steps, self.num_steps)
        self.active = self.active & ~flags
