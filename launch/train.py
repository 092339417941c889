"""Train a stage: one program for all of them.

    nextstep-jax train --config NAME --workdir DIR [--config.key=value ...]
    nextstep-jax train --config NAME:laptop --workdir DIR      the same, shrunk for a laptop

A stopped run continues from its newest checkpoint with the same command: there is no option for it. Exit codes: 0 done or
stopped by SIGTERM with everything saved; 1 the training failed, or another process of the run was lost; 2 a config, file or
option that cannot be used; 3 damaged data.

On a cluster every process runs this command with --distributed; JAX finds the others from the environment (Cloud TPU VMs, TPUs
on GKE, Slurm, Open MPI). On plain machines each process is told where the first one is, how many there are and which it is:

    nextstep-jax train ... --coordinator HOST:PORT --num-processes 2 --process-id 0      and 1 on the other

or, with --distributed, by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. When one of them dies the others end
too, with exit code 1: at once where a collective reports it (CPU, GPU) or it was the first of them, else when its heartbeat has
been missing for a minute, or when it has not come within five minutes of the start. Start all of them again.
"""

import logging
import os
import sys

import jax
from absl import flags
from absl import logging as absl_logging

from nextstep_jax.errors import NextStepError
from nextstep_jax.evaluation.evaluators import EVALUATORS
from nextstep_jax.launch.flag_parsing import parse
from nextstep_jax.launch.rendezvous import find_rendezvous, join
from nextstep_jax.launch.watch import watch
from nextstep_jax.training.loop import train

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "The stage: a shipped config or a file, NAME.py; with :laptop, shrunk.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and the trained model.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes: find the others first.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process, where no scheduler says so.")
_NUM_PROCESSES = flags.DEFINE_string("num_processes", None, "How many processes there are; goes with --coordinator.")
_PROCESS_ID = flags.DEFINE_string("process_id", None, "Which of them this one is, from 0; goes with --coordinator.")


def main(argv: list[str]) -> int:
    """Parse the command line, train, and return the exit code."""
    try:
        usage = "nextstep-jax train --config NAME --workdir DIR"
        config = parse(argv, FLAGS, ("config", "workdir"), usage)
        by_hand = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        if _DISTRIBUTED.value or by_hand != (None, None, None):
            rendezvous = find_rendezvous(os.environ, by_hand)
            code = watch()
            if code is not None:
                return code
            join(rendezvous)
        train(config, str(_WORKDIR.value), EVALUATORS)
    except NextStepError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:  # a full or lost disk
        if error.filename is None and error.errno is None:
            raise
        return _fail(f"{error.filename or _WORKDIR.value}: {error.strerror or error}", 1)
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        said = str(error).splitlines()[0]
        return _fail(f"another process of this run is gone or out of reach ({said}); start all processes again", 1)
    return 0


def _fail(message: str, code: int) -> int:
    """Print the line. One of several processes then ends on the spot: leaving in order would wait for the others."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        logging.shutdown()
        os._exit(code)
    return code


def configure_logging() -> None:
    """What the library says goes to stderr, with the time; of others only warnings."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("nextstep_jax").setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax and JAX report through it


if __name__ == "__main__":
    configure_logging()
    sys.exit(main(sys.argv))
