"""One thread for all tests: their networks are small, and more threads only wait for each other."""

import torch

torch.set_num_threads(1)
