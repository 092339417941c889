"""Three saves, the second while no file may grow beyond 50 kB; prints which steps were complete after each, as JSON."""

import json
import pathlib
import resource
import sys

import jax.numpy as jnp

from nextstep_jax.checkpoints import steps
from nextstep_jax.checkpoints.training import TrainCheckpointer

folder = pathlib.Path(sys.argv[1])
state = {"w": jnp.arange(100_000, dtype=jnp.float32)}
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
complete = []
with TrainCheckpointer(folder, config={}) as checkpointer:
    for step in (1, 2, 3):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]) if step == 2 else limit)
        checkpointer.save(step, state)
        checkpointer.wait()
        complete.append(steps.list_steps(folder / "checkpoints"))
    restored = checkpointer.restore(state)
assert restored.step == 3 and (restored.state["w"] == state["w"]).all()
print(json.dumps({"steps": complete, "failed_saves": checkpointer.failed_saves, "last_good": checkpointer.last_good}))
