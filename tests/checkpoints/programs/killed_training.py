"""Save steps until killed: at a given moment of the third save, or from outside. Prints each step it has begun to save."""

import os
import signal
import sys

import jax.numpy as jnp

from nextstep_jax.checkpoints import state_writers, training
from nextstep_jax.storage import files

workdir, moment = sys.argv[1:]


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


with training.TrainCheckpointer(workdir, config={}) as checkpointer:
    for step in range(1, 1_000_000):
        if step == 3:
            checkpointer.wait()
            if moment == "orbax":
                state_writers.ocp.args.PyTreeSave = die
            elif moment == "renaming":
                files.sync_folders = die
        checkpointer.save(step, {"step": jnp.int32(step), "w": jnp.full((400, 300), step, jnp.float32)})
        print(step, flush=True)
