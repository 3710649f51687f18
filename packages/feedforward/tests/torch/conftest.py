import torch
from hypothesis import settings


# With more, small operations wait for threads to wake up.
torch.set_num_threads(1)

# No deadline on a machine that others use; the same examples every time.
settings.register_profile("torch", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("torch")
