"""Settings of all tests.

One thread a process: the networks here are small, more threads only wait for each other, and what
waits is counted as time used. Property tests draw the same examples in each run;
``HYPOTHESIS_PROFILE=explore`` draws new ones.
"""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # read once, when the libraries are loaded

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # where triton is installed: read when imported

settings.register_profile("repeat", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))
