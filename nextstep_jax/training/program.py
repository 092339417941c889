"""A run's program before compilation: the first training state, and the step, of an objective under a run's settings.

The loop compiles it for the devices at hand, aot.py for devices that need not be here.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from nextstep_jax.sharding.params import state_shardings
from nextstep_jax.training.optimizer import make_optimizer, split_frozen
from nextstep_jax.training.settings import RunConfig
from nextstep_jax.training.state import TrainState, create_state
from nextstep_jax.training.step import Objective, make_train_step


class Program(NamedTuple):
    """A stage's training on a mesh.

    Attributes:
      params, trainable: shapes of all parameters, and of those that are trained.
      create: parameters -> the state at step 0.
      state, state_shardings: shapes of that state, and where each of its arrays lies.
      step: see `make_train_step`.
    """

    params: Any
    trainable: Any
    create: Callable[[Any], TrainState]
    state: TrainState
    state_shardings: TrainState
    step: Callable

    def jit_step(self):
        """The step, to be compiled once; the state it is given is used up."""
        return jax.jit(self.step, out_shardings=(self.state_shardings, None), donate_argnums=0)


def make_program(config: RunConfig, objective: Objective, mesh: Mesh) -> Program:
    """The training that `config` describes.

    Raises:
      InputError: optimizer settings that make no optimizer, or a parameter that cannot be placed on the mesh.
    """
    o = config.optimizer
    params = jax.eval_shape(objective.init, jax.eval_shape(lambda: jax.random.key(0)))
    trainable, _ = split_frozen(params, o.frozen)
    schedule = config.learning_rate_schedule()
    optimizer = make_optimizer(trainable, schedule, o)
    create = functools.partial(create_state, optimizer=optimizer, frozen=o.frozen, ema=config.ema_decay > 0)
    state = jax.eval_shape(create, params)
    step = make_train_step(
        objective,
        optimizer,
        schedule,
        grad_accum_steps=config.grad_accum_steps,
        frozen=o.frozen,
        ema_decay=config.ema_decay,
        ema_ramp=config.ema_ramp,
    )
    return Program(params, trainable, create, state, state_shardings(state, mesh), step)
