"""One thread: the models are tiny, and tests may run beside training."""

import logging

import torch

torch.set_num_threads(1)

# pytest listens to loggers that do not propagate, and torch traces every compilation in full once anybody listens.
logging.getLogger("torch.__trace").propagate = True
