"""One thread: the models are tiny, and tests may run beside training."""

import torch

torch.set_num_threads(1)
