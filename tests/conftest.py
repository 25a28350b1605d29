import os

import torch
from hypothesis import settings

# two processes share two cores: more threads only get in each other's way
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

settings.register_profile("arnas", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("arnas")
