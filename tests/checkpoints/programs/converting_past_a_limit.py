"""Save more parameters than the process may write into one file; prints the error and exits with its code."""

import resource
import sys

import numpy as np

from nextstep_jax import checkpoints
from nextstep_jax.errors import NextStepError

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save_params(sys.argv[1], {"model": {"w": np.zeros((500, 500), np.float32)}}, {})
except NextStepError as error:
    print(error)
    sys.exit(error.exit_code)
