"""Settings of all tests.

One thread: the networks here are small, and more threads only wait for each other. Property tests
draw the same examples in each run; ``HYPOTHESIS_PROFILE=explore`` draws new ones.
"""

import os

import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("repeat", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))
